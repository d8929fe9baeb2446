"""What one job of a sweep does on the cluster: start `ecdit train`, pass signals on, and queue again what was stopped.

Each task of the job runs a `RunJob` (through submitit), and each starts one process of the run; `ecdit train` finds its
rank in Slurm's variables by itself. Training is a process of its own, so that whatever becomes of it, something is left
to say so. Slurm announces the end of the time limit by SIGUSR2 (submitit's choice: NCCL uses SIGUSR1) and preemption by
SIGTERM; training knows SIGTERM: it saves and ends as interrupted. Task 0 then queues the job again, unless a person has
cancelled it.
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
from experiments.records.layout import RunDir
from experiments.records.ownership import holder
from experiments.records.provenance import host_name
from experiments.records.schema import State, Status
from experiments.records.storage import storage_errors
from experiments.records.writer import write_status
from sweeps.folder import SweepFolder
from sweeps.plan import PlannedRun

TRAIN = ("-m", "ecdit_cli", "train")
"""Arguments for the Python that the job runs under."""
INTERRUPTED = 130
"""What `ecdit train` exits with after a signal."""
MAX_VAIN_STARTS = 4
"""A run that was stopped this often before its first image is not started again."""
GRACE_SECONDS = 20.0
"""How long task 0 has to say why a run failed before another task says it."""
COMMAND_SECONDS = 60.0


@dataclass(frozen=True)
class Task:
    """This task of the job, as Slurm's variables tell it."""

    job: str
    rank: int
    node: str
    num_starts: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Task:
        """The job by its array and index: the bare id of an array's last job means the whole array."""
        array = environment.get("SLURM_ARRAY_JOB_ID")
        return cls(
            job=f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"],
            rank=int(environment.get("SLURM_PROCID", "0")),
            node=environment.get("SLURMD_NODENAME", host_name()),
            num_starts=1 + num_restarts(environment),
        )


@dataclass(frozen=True)
class Ending:
    """How the training process of this task ended; `told`: the signals that asked for it."""

    exit_code: int
    told: tuple[str, ...]

    def __str__(self) -> str:
        """`killed by SIGKILL, perhaps for lack of memory`."""
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        name = signal.Signals(-self.exit_code).name
        return f"killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")


@dataclass(frozen=True)
class RunJob:
    """One run of a sweep as a callable that submitit carries to the job; `folder` is absolute."""

    folder: SweepFolder
    run: PlannedRun
    command: tuple[str, ...] = TRAIN

    def __call__(self) -> None:
        """Bring the run to an end, as its folder then says. Raises when it is not done, so that Slurm ends the job."""
        task, run_dir = Task.of(os.environ), self.folder.run_dir(self.run)
        before = run_dir.read_status()
        ending = self._train(task, run_dir)
        if task.rank != 0:
            self._end_of_other(task, ending, run_dir)
        elif self._conclusion(task, ending, run_dir, before) == "interrupted":
            _queue_again(task)

    def _train(self, task: Task, run_dir: RunDir) -> Ending:
        """Start `ecdit train`, and wait for its end."""
        told: list[str] = []
        worker: subprocess.Popen[bytes] | None = None

        def pass_on(number: int, frame: FrameType | None) -> None:
            told.append(signal.Signals(number).name)
            if worker is not None:
                worker.send_signal(signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, pass_on)
        options = ("--config", str(self.folder.config_file(self.run)), "--run-dir", str(run_dir.path))
        with _output(task, run_dir) as output:
            worker = subprocess.Popen(
                [sys.executable, *self.command, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                preexec_fn=_ignore_announcement,
            )
            if told:
                worker.send_signal(signal.SIGTERM)
            return Ending(worker.wait(), tuple(told))

    def _conclusion(self, task: Task, ending: Ending, run_dir: RunDir, before: Status | None) -> State:
        """What has become of the run; where its process could not say so, it is written down here."""
        status = run_dir.read_status()
        if status is not None and status.state == "done":
            return "done"
        if status is None or status == before or status.state == "running":
            other = holder(run_dir.claims)
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
        """The end of a process that keeps no records. If it was lost, the run is, and task 0 may not come to know."""
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
        """The last word on a run that has none of its own."""
        before = run_dir.read_status()
        images_seen = 0 if before is None else before.images_seen
        total, now = self.run.images, time.time()
        status = Status(
            state=state, images_seen=images_seen, images_total=total, heartbeat=now, reason=reason,
            checkpoint_images=None if before is None else before.checkpoint_images,
        )  # fmt: skip
        write_status(run_dir, status)
        return status


def _queue_again(task: Task) -> None:
    """Requeue the job if it still runs: it was preempted or out of time. One that a person cancelled stays ended."""
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
    """As many threads as the task has processors, and the rank that this job's own srun gave, no other launcher's."""
    num_cores = os.environ.get("SLURM_CPUS_PER_TASK")
    threads = {} if num_cores is None else {"OMP_NUM_THREADS": num_cores}
    return child_environment(threads, kept_ranks=("SLURM_", "MASTER_"))


def _ignore_announcement() -> None:
    """Slurm sends SIGUSR2 to every process of the task; the default would end the training."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@contextmanager
def _output(task: Task, run_dir: RunDir) -> Iterator[IO[bytes] | None]:
    """Where a process prints to: the log of the run, and Slurm's log of the task for those that keep no records."""
    if task.rank != 0:
        yield None
        return
    with storage_errors(run_dir.log):
        run_dir.path.mkdir(parents=True, exist_ok=True)
        log = run_dir.log.open("ab")
    with log:
        yield log


def _reason(ending: Ending, run_dir: RunDir) -> str:
    """The signal, or the last line that was printed."""
    if ending.exit_code < 0:
        return str(ending)
    with run_dir.log.open("rb") as log:
        log.seek(max(0, run_dir.log.stat().st_size - 4096))
        lines = log.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("error: ") or str(ending)
