"""What a job does when its training ends, is killed or is told to stop; `scontrol` is a script that notes its calls."""

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from experiments.records.lock_file import take
from sweeps.slurm_job import RunJob, Task

TRAINING = """
import os, signal, sys, time
from pathlib import Path
from experiments.records.run_folder import RunDir
from experiments.records.record_types import Status
from experiments.records.writer import write_status

run_dir = RunDir(Path(sys.argv[sys.argv.index("--run-dir") + 1]))

def say(state, images_seen, reason=None):
    status = Status(state=state, images_seen=images_seen, images_total=64, heartbeat=time.time(), reason=reason)
    write_status(run_dir, status)

def save(number, frame):
    say("interrupted", 32, "SIGTERM")
    sys.exit(130)

"""
UNTIL_TOLD = 'signal.signal(signal.SIGTERM, save); say("running", 32); time.sleep(60)'
JOB = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))()"
SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
echo "JobId=7 JobState={state} Reason=None"
"""


class Job:
    """A task of a Slurm job that trains with `program`, in a process of its own."""

    def __init__(self, folder, run, tmp_path):
        self.run_dir, self._tmp, self._calls = folder.run_dir(run), tmp_path, tmp_path / "calls"
        self._folder, self._run = folder, run

    def start(self, program, state="RUNNING", **variables):
        script, pickled, scontrol = (self._tmp / name for name in ("train.py", "job.pkl", "scontrol"))
        script.write_text(TRAINING + program)
        pickled.write_bytes(pickle.dumps(RunJob(self._folder, self._run, (str(script),))))
        scontrol.write_text(SCONTROL.format(calls=self._calls, state=state))
        scontrol.chmod(0o755)
        slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURMD_NODENAME": "n1", **variables}
        own = {**os.environ, **slurm, "PATH": f"{self._tmp}:{os.environ['PATH']}"}
        return subprocess.Popen([sys.executable, "-c", JOB, str(pickled)], env=own, stderr=subprocess.PIPE, text=True)

    def end(self, program, **variables):
        process = self.start(program, **variables)
        _, error = process.communicate(timeout=120)
        return process.returncode, error.strip().rpartition("\n")[2]

    def tell(self, program, number, when=lambda status: status is not None, **variables):
        """Start, send a signal once training is under way, and wait for the end."""
        process = self.start(program, **variables)
        while not when(self.status()):
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=120)
        return process.returncode

    def status(self):
        return self.run_dir.read_status()

    def calls(self):
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def job(folder, seeds, tmp_path):
    run = seeds(0).runs[0]
    folder.write_config(run)
    return Job(folder, run, tmp_path)


def test_a_run_that_is_done_ends_the_job_well(job):
    assert job.end('say("done", 64)') == (0, "")
    assert job.status().state == "done"
    assert job.calls() == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ('say("failed", 8, "Not finite."); sys.exit(1)', "Not finite."),
        ('say("running", 8); raise RuntimeError("the layer exploded")', "RuntimeError: the layer exploded"),
        ('say("running", 8); sys.exit(3)', "ended with exit code 3"),
        ('say("running", 8); os.kill(os.getpid(), 9)', "killed by SIGKILL, perhaps for lack of memory"),
        ('say("running", 8); os.kill(os.getpid(), 11)', "killed by SIGSEGV"),
    ],
)
def test_a_run_that_fails_fails_the_job_and_is_not_queued_again(job, program, reason):
    exit_code, last_line = job.end(program)
    assert exit_code == 1
    assert last_line.endswith(f"failed: {reason}")
    assert (job.status().state, job.status().images_seen, job.status().reason) == ("failed", 8, reason)
    assert job.calls() == []


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_saves_and_is_queued_again(job, number):
    assert job.tell(UNTIL_TOLD, number) == 0
    assert (job.status().state, job.status().images_seen) == ("interrupted", 32)
    assert job.calls() == ["show job --oneliner 7", "requeue 7"]


def test_a_job_of_an_array_is_named_so_that_the_others_stay(job):
    job.tell(UNTIL_TOLD, signal.SIGUSR2, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert job.calls()[-1] == "requeue 7_2"


def test_a_job_that_a_person_cancelled_is_not_queued_again(job):
    job.tell(UNTIL_TOLD, signal.SIGTERM, state="CANCELLED")
    assert job.status().state == "interrupted"
    assert job.calls() == ["show job --oneliner 7"]


def test_training_does_not_die_of_the_announcement_that_slurm_sends_to_every_process(job):
    program = 'os.kill(os.getpid(), signal.SIGUSR2); say("done", 64)'
    assert job.end(program) == (0, "")
    assert job.status().state == "done"


def test_a_run_stopped_before_its_first_image_is_tried_again_a_few_times_only(job):
    begun = 'Path(run_dir.path, "begun").touch(); time.sleep(60)'

    def is_up(status):
        return (job.run_dir.path / "begun").exists()

    assert job.tell(begun, signal.SIGUSR2, is_up, SLURM_RESTART_COUNT="2") == 0
    assert (job.status().state, job.status().reason) == ("interrupted", "SIGUSR2")
    assert job.calls()[-1] == "requeue 7"
    (job.run_dir.path / "begun").unlink()
    assert job.tell(begun, signal.SIGUSR2, is_up, SLURM_RESTART_COUNT="3") == 1
    assert job.status().state == "failed"
    assert job.status().reason == "Stopped 4 times before its first image. Give it more time in the cluster file."


def test_a_run_that_another_process_writes_is_left_to_it(job):
    lock = take(job.run_dir.locks)
    exit_code, last_line = job.end("sys.exit(2)")
    lock.release()
    assert exit_code == 1
    assert f"is being written by another process (process {os.getpid()} on" in last_line
    assert job.status() is None


def test_a_lost_process_is_the_reason_that_the_run_gives(job):
    exit_code, _ = job.end(
        'say("failed", 8, "Another process has ended."); os.kill(os.getpid(), 9)',
        SLURM_PROCID="1",
        SLURMD_NODENAME="n2",
    )
    assert exit_code == 1
    assert job.status().state == "failed"
    assert job.status().reason == "process 1 on n2: killed by SIGKILL, perhaps for lack of memory"


def test_a_failure_that_has_a_reason_keeps_it_when_other_processes_fail_with_it(job):
    job.end('say("failed", 8, "Not finite."); sys.exit(1)', SLURM_PROCID="1")
    assert job.status().reason == "Not finite."


def test_a_task_is_known_by_slurms_variables():
    environment = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_PROCID": "1"}
    assert Task.of({**environment, "SLURMD_NODENAME": "n2", "SLURM_RESTART_COUNT": "2"}) == Task("9_3", 1, "n2", 3)
    assert Task.of({"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1"}) == Task("12", 0, "n1", 1)
