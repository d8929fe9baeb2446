"""The executor for this machine: each run in its own process, a fixed number of them at a time.

A run is judged by its `status.json`, never by its exit code: a process may abort in teardown after all work is done,
and one that was killed could not write why. A run that changes nothing in its folder for too long hangs, and is ended.
Workers lead sessions of their own, so that Ctrl-C reaches the sweep only, which passes it on. `workers.py` starts
processes; `runner.py` decides which run is next and whether it is tried again.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Hashable, Sequence
from pathlib import Path

from experiments.records.lock_file import Silence, holder
from experiments.records.record_types import Status
from experiments.records.run_folder import RunDir
from experiments.records.storage import storage_errors
from experiments.records.writer import write_status
from sweeps.device_slots import Slot
from sweeps.folder import SweepFolder
from sweeps.plan import PlannedRun
from sweeps.run_queue import killed_by, last_word
from sweeps.runner import Killed
from sweeps.trunks import branch_options
from sweeps.workers import FoundWorker, Launcher, Worker

TIMEOUT_SECONDS = 600.0
"""A run that changes nothing in its folder for this long is taken to hang."""
GRACE_SECONDS = 30.0
"""Seconds between SIGTERM and SIGKILL for a run that hangs."""
LOOK_SECONDS = 2.0
FIRST_WAS_KILLED = re.compile(r"Root Cause(?:(?!exitcode).)*exitcode\s*:\s*-(\d+)", re.DOTALL)
"""Finds the signal in torchrun's report, because its exit code does not tell a killed process from a failed one."""


class LocalExecutor:
    """Executes planned runs as processes of this machine, in `slots`."""

    def __init__(
        self,
        folder: SweepFolder,
        slots: Sequence[Slot],
        launcher: Launcher,
        timeout_seconds: float = TIMEOUT_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Creates the executor; nothing starts before `execute`."""
        self._folder, self._slots, self._launcher = folder, tuple(slots), launcher
        self._timeout_seconds, self._grace_seconds = timeout_seconds, grace_seconds
        self._workers: set[Worker] = set()
        self._stopping = False

    @property
    def num_slots(self) -> int:
        """Returns the number of runs that are executed at once."""
        return len(self._slots)

    async def execute(self, run: PlannedRun, slot: int) -> Killed | None:
        """Executes `run` until its folder says done, failed or interrupted; else returns `Killed`.

        A process of an earlier sweep that still works on the run is waited for, so that no second one joins it. Raises
        `StorageError` when the folder cannot be written.
        """
        run_dir = self._folder.run_dir(run)
        while (other := found_worker(run_dir)) is not None and not self._stopping:
            await self._watch(other, run_dir)
        before = run_dir.read_status()
        if self._stopping or (before is not None and before.state == "done"):
            return None
        # The log is appended to, so that what this start prints begins at its present end.
        log_start = run_dir.log.stat().st_size if run_dir.log.is_file() else 0
        worker = await self._start(run, slot)
        if worker is None:
            return Killed("the process that starts runs has ended")
        exit_code, hangs = await self._watch(worker, run_dir)
        if (other := found_worker(run_dir)) is not None:  # ours was refused, because another process had been faster
            await self._watch(other, run_dir)
        return self._judge(run, before, exit_code, hangs, log_start)

    def stop(self) -> None:
        """Asks every worker to save and end (SIGTERM); nothing new is started."""
        self._stopping = True
        for worker in self._workers:
            worker.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends every worker and what it started at once; the last checkpoint stays."""
        self._stopping = True
        for worker in self._workers:
            worker.kill()

    async def close(self) -> None:
        """Closes the launcher when nothing will be started any more."""
        await self._launcher.close()

    async def _start(self, run: PlannedRun, slot: int) -> Worker | None:
        run_dir, config_file = self._folder.run_dir(run), self._folder.write_config(run)
        arguments = ("--config", str(config_file), "--run-dir", str(run_dir.path), *branch_options(self._folder, run))
        with storage_errors(run_dir.log):
            run_dir.path.mkdir(parents=True, exist_ok=True)
            run_dir.log.touch()
        return await self._launcher.start(arguments, self._slots[slot], run_dir.log.absolute(), run.world)

    async def _watch(self, worker: Worker, run_dir: RunDir) -> tuple[int | None, bool]:
        """Waits for the end of `worker`. Returns its exit code, and whether it was ended because it hung."""
        self._workers.add(worker)
        if self._stopping:
            worker.signal(signal.SIGTERM)
        # A wall clock that is set, or a machine that sleeps, must not make a run seem silent, so the clock is
        # monotonic.
        silence, hangs = Silence(), False
        ended = asyncio.ensure_future(worker.wait())
        while not await _is_over(ended, min(LOOK_SECONDS, self._timeout_seconds / 4)):
            if not hangs and silence.seconds("run", pulse(run_dir)) >= self._timeout_seconds:
                hangs = True
                worker.signal(signal.SIGTERM)
                if not await _is_over(ended, self._grace_seconds):
                    worker.kill()
        self._workers.discard(worker)
        return ended.result(), hangs

    def _judge(
        self, run: PlannedRun, before: Status | None, exit_code: int | None, hangs: bool, log_start: int
    ) -> Killed | None:
        """Returns `Killed` for a run that can be tried again, and None for one that has ended by itself.

        What the folder says counts. A run that did not write how it ended was killed, or failed with a message in its
        log; the latter is then written to its status here.
        """
        run_dir = self._folder.run_dir(run)
        status = run_dir.read_status()
        has_spoken = status is not None and status != before and status.state != "running"
        said_end = has_spoken and status is not None and status.state in ("done", "failed")
        if self._stopping or (said_end and not _lost_process(run_dir, status, log_start)):
            return None
        if hangs:
            return Killed(f"gave no sign for {self._timeout_seconds:.0f} s")
        if has_spoken:
            return Killed(f"stopped by {status.reason}" if status is not None else "stopped")
        if exit_code is None or exit_code < 0:
            return Killed(_signal_name(exit_code))
        if (killed := _lost_process(run_dir, status, log_start)) is not None:
            return Killed(killed)
        reason = _last_line(run_dir, log_start) or f"ended with exit code {exit_code} and no message"
        write_status(run_dir, last_word(run, status, reason))
        return None


def found_worker(run_dir: RunDir) -> FoundWorker | None:
    """Returns the process of this machine that works on the run, whoever started it, or None."""
    found = holder(run_dir.locks)
    if found is None or found.owner is None or found.is_dead() is not False:
        return None
    return FoundWorker(found.owner)


def pulse(run_dir: RunDir) -> Hashable:
    """Returns a value that changes whenever a run writes anything: status, rows, log, checkpoints."""
    paths = (run_dir.status_json, run_dir.steps, run_dir.routing, run_dir.evals, run_dir.log, run_dir.checkpoints)
    return tuple(map(_state_of, paths))


def _state_of(path: Path) -> Hashable:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_ino, state.st_size, state.st_mtime_ns)


async def _is_over(ended: asyncio.Future[int | None], seconds: float) -> bool:
    await asyncio.wait([ended], timeout=seconds)
    return ended.done()


def _signal_name(exit_code: int | None) -> str:
    if exit_code is None:
        return "its process has ended without a word"
    return killed_by(-exit_code)


def _lost_process(run_dir: RunDir, status: Status | None, log_start: int) -> str | None:
    """Says which signal ended one of several processes, by torchrun's report in the log; None where none did."""
    if status is not None and status.state == "done":
        return None
    found = FIRST_WAS_KILLED.search("\n".join(_tail(run_dir, log_start)))
    return None if found is None else _signal_name(-int(found[1]))


def _last_line(run_dir: RunDir, log_start: int) -> str:
    lines = _tail(run_dir, log_start)
    return next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix("error: ")


def _tail(run_dir: RunDir, log_start: int) -> list[str]:
    with run_dir.log.open("rb") as log:
        log.seek(max(log_start, run_dir.log.stat().st_size - 8192))
        return log.read().decode(errors="replace").splitlines()
