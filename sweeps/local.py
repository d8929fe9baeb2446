"""The executor for this machine: each run in its own process, a fixed number of them at a time.

A run is judged by its `status.json`, never by its exit code: a process may abort in teardown after all work was done,
and one that was killed could not say so. Workers lead their own session, so that Ctrl-C reaches the sweep alone, which
passes it on. Which run goes next is `runner.py`'s to say.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from experiments.records.layout import RunDir
from experiments.records.provenance import host_name
from experiments.records.schema import Status
from experiments.records.storage import storage_errors
from experiments.records.writer import write_status
from sweeps.folder import SweepFolder
from sweeps.plan import PlannedRun
from sweeps.progress import is_alive

TRAIN = (sys.executable, "-m", "ecdit_cli", "train")
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Slots:
    """How many runs go at once and what each gets. `accelerators` are dealt out in turn; empty on a CPU."""

    count: int
    num_threads: int
    accelerators: tuple[str, ...] = ()

    def environment(self, slot: int) -> dict[str, str]:
        """The variables of a worker in `slot`."""
        own = {"OMP_NUM_THREADS": str(self.num_threads)}
        if self.accelerators:
            own["CUDA_VISIBLE_DEVICES"] = self.accelerators[slot % len(self.accelerators)]
        return {**os.environ, **own}


def choose_slots(num_runs: int, asked: int | None = None) -> Slots:
    """`asked` slots, else one per accelerator, else one per core; never more than runs. Cores are shared evenly."""
    accelerators, num_cores = visible_accelerators(), visible_cores()
    count = max(1, min(asked or len(accelerators) or num_cores, num_runs))
    return Slots(count, max(1, num_cores // count), accelerators)


def visible_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_accelerators() -> tuple[str, ...]:
    """Ids of the CUDA devices that this process may use, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(device.strip() for device in visible.split(",") if device.strip() not in ("", "-1"))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ()
    devices = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(index) for index in range(len(devices)))


class LocalExecutor:
    """Runs planned runs as processes of this machine; `command` is called with `--config FILE --run-dir DIR`."""

    def __init__(self, folder: SweepFolder, slots: Slots, command: Sequence[str] = TRAIN) -> None:
        """Nothing starts before `execute`."""
        self._folder = folder
        self._slots = slots
        self._command = tuple(command)
        self._workers: set[Process] = set()
        self._adopted: dict[str, Status] = {}
        self._stopping = False

    @property
    def num_slots(self) -> int:
        """How many runs go at once."""
        return self._slots.count

    async def execute(self, run: PlannedRun, slot: int) -> None:
        """Bring `run` to an end: done, failed or interrupted, as its folder then says.

        A process of an earlier sweep that still works on it is waited for, not joined by a second one.
        Raises `StorageError` when the folder cannot be written.
        """
        run_dir = self._folder.run_dir(run)
        await self._wait_for_other(run_dir)
        before = run_dir.read_status()
        if self._stopping or (before is not None and before.state == "done"):
            return
        log_start = run_dir.log.stat().st_size if run_dir.log.is_file() else 0
        exit_code = await self._train(run, slot)
        await self._wait_for_other(run_dir)
        status = run_dir.read_status()
        has_spoken = status is not None and status != before and status.state != "running"
        if not has_spoken and not self._stopping:
            write_status(run_dir, _last_word(run, status, _reason(exit_code, run_dir, log_start)))

    def stop(self) -> None:
        """Ask every worker to save and end (SIGTERM); nothing new starts."""
        self._stopping = True
        for worker in self._workers:
            _signal(worker, signal.SIGTERM)
        for status in self._adopted.values():
            _signal_adopted(status, signal.SIGTERM)

    def kill(self) -> None:
        """End every worker and what it started at once; the last checkpoint stays."""
        self._stopping = True
        for worker in self._workers:
            _signal(worker, signal.SIGKILL, with_children=True)
        for status in self._adopted.values():
            _signal_adopted(status, signal.SIGKILL)

    async def _train(self, run: PlannedRun, slot: int) -> int:
        run_dir, config_file = self._folder.run_dir(run), self._folder.write_config(run)
        with storage_errors(run_dir.log):
            run_dir.path.mkdir(parents=True, exist_ok=True)
            log = run_dir.log.open("ab")
        with log:
            worker = await asyncio.create_subprocess_exec(
                *self._command,
                *("--config", str(config_file), "--run-dir", str(run_dir.path)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._slots.environment(slot),
                start_new_session=True,
            )
        self._workers.add(worker)
        if self._stopping:
            _signal(worker, signal.SIGTERM)
        exit_code = await worker.wait()
        self._workers.discard(worker)
        return exit_code

    async def _wait_for_other(self, run_dir: RunDir) -> None:
        """While a process that is not ours works on the run."""
        while (status := run_dir.read_status()) is not None and status.state == "running" and is_alive(status):
            if run_dir.path.name not in self._adopted and self._stopping:
                _signal_adopted(status, signal.SIGTERM)
            self._adopted[run_dir.path.name] = status
            await asyncio.sleep(POLL_SECONDS)
        self._adopted.pop(run_dir.path.name, None)


def _signal(worker: Process, number: signal.Signals, with_children: bool = False) -> None:
    """Reach a worker that may have ended a moment ago."""
    if worker.returncode is None:
        with suppress(ProcessLookupError):
            (os.killpg if with_children else os.kill)(worker.pid, number)


def _signal_adopted(status: Status, number: signal.Signals) -> None:
    if status.pid is not None and status.host == host_name() and is_alive(status):
        os.kill(status.pid, number)


def _last_word(run: PlannedRun, status: Status | None, reason: str) -> Status:
    """The status of a run that ended without one of its own."""
    images_seen = 0 if status is None else status.images_seen
    return Status(
        state="failed", images_seen=images_seen, images_total=run.images, heartbeat=time.time(), reason=reason
    )


def _reason(exit_code: int, run_dir: RunDir, log_start: int) -> str:
    """Why a worker ended without a word: the signal, or the last line it printed."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
    return _last_line(run_dir, log_start) or f"ended with exit code {exit_code} and no message"


def _last_line(run_dir: RunDir, log_start: int) -> str:
    with run_dir.log.open("rb") as log:
        log.seek(max(log_start, run_dir.log.stat().st_size - 4096))
        lines = log.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix("error: ")
