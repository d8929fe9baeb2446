"""One job of a sweep on the cluster: it starts `ecdit train`, passes signals on, and requeues a stopped run.

Each task of the job executes a `RunJob` (through submitit), which starts one process of the run; `ecdit train` finds
its rank in Slurm's variables. Training is a separate process, so that the task survives it and can record how it ended.
Slurm announces the end of the time limit by SIGUSR2 (submitit's choice, because NCCL uses SIGUSR1) and preemption by
SIGTERM. Both are passed on as SIGTERM, upon which training saves and ends as interrupted. Task 0 then requeues the job,
unless a person has cancelled it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO

from experiments.environment import child_environment, num_restarts
from experiments.errors import RecordError, RunFailedError
from experiments.records.lock_file import holder
from experiments.records.provenance import host_name
from experiments.records.record_types import State, Status
from experiments.records.run_folder import RunDir
from experiments.records.storage import storage_errors
from experiments.records.writer import write_status
from sweeps.folder import SweepFolder
from sweeps.plan import PlannedRun
from sweeps.run_queue import killed_by, last_word
from sweeps.trunks import branch_options, is_waiting

TRAIN = ("-m", "ecdit_cli", "train")
"""Arguments for the Python interpreter that executes the job."""
INTERRUPTED = 130
"""The exit code of `ecdit train` after a signal."""
MAX_VAIN_STARTS = 4
"""A run that was stopped this often before its first image is not started again."""
GRACE_SECONDS = 20.0
"""Seconds that task 0 has to record why a run failed before another task does."""
COMMAND_SECONDS = 60.0


@dataclass(frozen=True)
class Task:
    """This task of the job, read from Slurm's variables."""

    job: str
    rank: int
    node: str
    num_starts: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Task:
        """Reads the task from `environment`.

        A job of an array is named by array and index, because the bare id of the last job of an array means the whole
        array.
        """
        array = environment.get("SLURM_ARRAY_JOB_ID")
        return cls(
            job=f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"],
            rank=int(environment.get("SLURM_PROCID", "0")),
            node=environment.get("SLURMD_NODENAME", host_name()),
            num_starts=1 + num_restarts(environment),
        )


@dataclass(frozen=True)
class Ending:
    """The end of the training process of this task; `told` are the signals that had asked for it."""

    exit_code: int
    told: tuple[str, ...]

    def __str__(self) -> str:
        """Says it in words, such as `killed by SIGKILL, perhaps for lack of memory`."""
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        return killed_by(-self.exit_code)


@dataclass(frozen=True)
class RunJob:
    """One run of a sweep as a callable that submitit pickles for the job; `folder` is absolute."""

    folder: SweepFolder
    run: PlannedRun
    command: tuple[str, ...] = TRAIN

    def __call__(self) -> None:
        """Executes the run until its folder says how it ended. Raises when it failed, so that Slurm ends the job."""
        task, run_dir = Task.of(os.environ), self.folder.run_dir(self.run)
        if is_waiting(self.folder, self.run):
            raise RunFailedError(
                f"{self.run.name} was not started: {self.run.parent} has ended without the checkpoint after "
                f"{self.run.trunk_images:,} images, from which it continues.",
                "Submit the sweep again.",
            )
        before = run_dir.read_status()
        ending = self._train(task, run_dir)
        if task.rank != 0:
            self._end_of_other(task, ending, run_dir)
        elif self._conclusion(task, ending, run_dir, before) == "interrupted":
            _queue_again(task)

    def _train(self, task: Task, run_dir: RunDir) -> Ending:
        """Starts `ecdit train`, and waits for its end."""
        told: list[str] = []
        worker: subprocess.Popen[bytes] | None = None

        def pass_on(number: int, frame: FrameType | None) -> None:
            told.append(signal.Signals(number).name)
            if worker is not None:
                worker.send_signal(signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, pass_on)
        options = (
            *("--config", str(self.folder.config_file(self.run)), "--run-dir", str(run_dir.path)),
            *branch_options(self.folder, self.run),
        )
        with _output(task, run_dir) as output:
            worker = subprocess.Popen(
                [sys.executable, *self.command, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                preexec_fn=_ignore_announcement,
            )
            if told:  # a signal came while the process was being started, so it was not passed on
                worker.send_signal(signal.SIGTERM)
            return Ending(worker.wait(), tuple(told))

    def _conclusion(self, task: Task, ending: Ending, run_dir: RunDir, before: Status | None) -> State:
        """Returns the state of the run; where its process could not write it, it is written here."""
        status = run_dir.read_status()
        if status is not None and status.state == "done":
            return "done"
        if status is None or status == before or status.state == "running":
            other = holder(run_dir.locks)
            if other is not None and not other.is_dead():
                raise RecordError(f"{run_dir.path} is being written by another process ({other.owner}).")
            told = ending.told[0] if ending.told else None
            status = self._say(run_dir, "interrupted" if told else "failed", told or _reason(ending, run_dir))
        if status.state == "interrupted" and status.images_seen == 0 and task.num_starts >= MAX_VAIN_STARTS:
            reason = f"Stopped {task.num_starts} times before its first image. Give it more time in the cluster file."
            status = self._say(run_dir, "failed", reason)
        if status.state == "failed":
            raise RunFailedError(f"{self.run.name} failed: {status.reason}")
        return status.state

    def _end_of_other(self, task: Task, ending: Ending, run_dir: RunDir) -> None:
        """Handles the end of a process other than rank 0.

        If it was lost, so is the run, and task 0 may not notice; it is then recorded here.
        """
        if ending.exit_code in (0, INTERRUPTED) or ending.told:
            return
        deadline = time.monotonic() + GRACE_SECONDS
        while (status := run_dir.read_status()) is not None and status.state == "running":
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        reason = f"process {task.rank} on {task.node}: {ending}"
        if ending.exit_code < 0 or status is None or status.state == "running":
            self._say(run_dir, "failed", reason)
        raise RunFailedError(f"{self.run.name} failed: {reason}")

    def _say(self, run_dir: RunDir, state: State, reason: str) -> Status:
        """Writes the final status of a run whose process did not write one."""
        status = last_word(self.run, run_dir.read_status(), reason, state)
        write_status(run_dir, status)
        return status


def _queue_again(task: Task) -> None:
    """Requeues the job if Slurm says that it still runs. One that a person has cancelled does not, and stays ended."""
    shown = _scontrol("show", "job", "--oneliner", task.job)
    if "JobState=RUNNING" in shown.split():
        print(f"Saved. Queueing {task.job} again.", flush=True)
        _scontrol("requeue", task.job)


def _scontrol(*arguments: str) -> str:
    done = subprocess.run(
        ["scontrol", *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    if done.returncode != 0:
        raise RunFailedError(f"scontrol {' '.join(arguments)}: {' '.join(done.stderr.split())}", "Submit it again.")
    return done.stdout


def _environment() -> dict[str, str]:
    """Returns the environment: a thread for each core of the task, and the rank given by this job's own srun only."""
    num_cores = os.environ.get("SLURM_CPUS_PER_TASK")
    threads = {} if num_cores is None else {"OMP_NUM_THREADS": num_cores}
    return child_environment(threads, kept_ranks=("SLURM_", "MASTER_"))


def _ignore_announcement() -> None:
    """Ignores SIGUSR2, which Slurm sends to every process of the task; its default action would end the training."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@contextmanager
def _output(task: Task, run_dir: RunDir) -> Iterator[IO[bytes] | None]:
    """Yields the log of the run as output of rank 0; other ranks print to Slurm's log of the task."""
    if task.rank != 0:
        yield None
        return
    with storage_errors(run_dir.log):
        run_dir.path.mkdir(parents=True, exist_ok=True)
        log = run_dir.log.open("ab")
    with log:
        yield log


def _reason(ending: Ending, run_dir: RunDir) -> str:
    """Returns the signal that ended the process, or the last line that it printed."""
    if ending.exit_code < 0:
        return str(ending)
    with run_dir.log.open("rb") as log:
        log.seek(max(0, run_dir.log.stat().st_size - 4096))
        lines = log.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("error: ") or str(ending)
