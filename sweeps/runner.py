"""Works off a plan: starts runs in free slots, handles those that end, and ends the sweep.

How a run is executed is left to `local.py` and `slurm.py`, how it is shown to the command line; `run_queue.py` chooses
the next run and decides on retries. Finished runs are left alone; all others are started again, and continue from their
last checkpoint. One failing run never stops another.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from experiments.errors import EcditError, SpecError
from sweeps.folder import SweepFolder
from sweeps.plan import Plan, PlannedRun, extend
from sweeps.progress import RunProgress, SweepSnapshot, read_progress, schedule_seconds
from sweeps.run_queue import Retries, RunQueue
from sweeps.sharing import SharedRuns

REFRESH_SECONDS = 0.5

OnProgress = Callable[[SweepSnapshot], None]


@dataclass(frozen=True)
class Killed:
    """The result of a run that was ended from outside, or hung: it can be tried again."""

    reason: str


class Executor(Protocol):
    """The interface of what executes runs; the one for this machine is `local.LocalExecutor`."""

    @property
    def num_slots(self) -> int:
        """Returns the number of runs that are executed at once."""

    async def execute(self, run: PlannedRun, slot: int) -> Killed | None:
        """Executes `run` until its folder says how it ended, or returns that it was killed before that."""

    def stop(self) -> None:
        """Asks all running runs to save and end."""

    def kill(self) -> None:
        """Ends all running runs at once."""

    async def close(self) -> None:
        """Releases the executor when nothing will be executed any more."""


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep. `runs` are those that the sweep file asks for, in the order of the plan."""

    runs: list[RunProgress]
    seconds: float
    interrupted: bool
    replaced: frozenset[str] = frozenset()
    """The runs that diverged and of which a retry at a lower learning rate is done (`rate_retries.py`)."""

    @property
    def exit_code(self) -> int:
        """Returns the exit code, 0 when all runs are done, else 130 when the sweep was interrupted, and 1 otherwise.

        A run that diverged counts as done when a retry of it is.
        """
        if all(run.state == "done" or run.name in self.replaced for run in self.runs):
            return 0
        return 130 if self.interrupted else 1


def freeze_plan(folder: SweepFolder, asked: Plan) -> Plan:
    """Writes `asked` as the plan of `folder`, or extends the plan that is there. Call it with the folder locked.

    Raises `SpecError` when the folder belongs to another sweep, and `StorageError` when it cannot be written.
    """
    frozen = folder.read_plan()
    if frozen is not None and frozen.sweep != asked.sweep:
        raise SpecError(
            f"{folder.path} holds the sweep {frozen.sweep!r}, not {asked.sweep!r}.", "Choose another --out."
        )
    plan = asked if frozen is None else extend(frozen, asked, folder.started(frozen))
    if plan != frozen:
        folder.write_plan(plan)
    return plan


def run_sweep(
    folder: SweepFolder,
    plan: Plan,
    executor: Executor,
    on_progress: OnProgress,
    retries: Retries | None = None,
    retry_failed: bool = True,
    shared: SharedRuns | None = None,
) -> SweepResult:
    """Runs everything in `plan` that is not done, in its order. `on_progress` is called about twice a second.

    The work is shared with other sweeps of the same folder: what they have finished counts as finished. `retry_failed`
    says whether runs that failed before are started again. SIGINT, SIGTERM and SIGHUP stop the sweep after its running
    runs have saved; a second SIGINT kills them.
    """
    shared = shared or SharedRuns(folder)
    session = _Session(folder, plan, executor, on_progress, retries or Retries(), retry_failed, shared)
    return asyncio.run(session.run())


def _costs_per_image(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """Returns what an image costs each run: its estimated seconds where all runs have them, and else its FLOPs.

    Small models take longer for a FLOP than large ones, which an estimate from a calibration contains.
    """
    known = {
        run.name: run.estimate.seconds / run.images
        for run in runs
        if run.estimate is not None and run.estimate.seconds is not None
    }
    return known if len(known) == len(runs) else {run.name: float(run.train_flops_per_image) for run in runs}


class _Session:
    """The state of one call of `run_sweep`."""

    def __init__(
        self,
        folder: SweepFolder,
        plan: Plan,
        executor: Executor,
        on_progress: OnProgress,
        retries: Retries,
        retry_failed: bool,
        shared: SharedRuns,
    ) -> None:
        self._folder, self._executor, self._on_progress = folder, executor, on_progress
        self._planned = {run.name: run for run in plan.wanted}
        self._progress = {run.name: read_progress(folder.run_dir(run), run.images) for run in plan.wanted}
        self._queue = RunQueue(folder, plan.wanted, self._progress, shared, retries, retry_failed)
        self._running: dict[str, float] = {}
        # The images of a trunk are not trained again, so that they count neither as done here nor as left.
        self._images_before = {
            name: max(run.images_seen, self._planned[name].trunk_images) for name, run in self._progress.items()
        }
        self._image_costs = _costs_per_image(plan.wanted)
        self._busy_seconds = 0.0
        self._started = time.monotonic()
        self._stopping = False

    async def run(self) -> SweepResult:
        self._listen_to_signals()
        slots = asyncio.gather(*(self._work_off(slot) for slot in range(self._executor.num_slots)))
        try:
            while not slots.done():
                self._on_progress(self._snapshot())
                await asyncio.wait([slots], timeout=REFRESH_SECONDS)
                self._refresh()
            await slots
            self._refresh()
        finally:
            self._executor.kill()
            await self._executor.close()
            self._queue.close()
        snapshot = self._snapshot()
        self._on_progress(snapshot)
        return SweepResult(list(snapshot.runs), snapshot.seconds, self._stopping)

    async def _work_off(self, slot: int) -> None:
        while not self._queue.is_empty:
            run = self._queue.take()
            if run is None:
                await asyncio.sleep(REFRESH_SECONDS)
                continue
            started = self._running[run.name] = time.monotonic()
            killed, reason = None, None
            try:
                killed = await self._executor.execute(run, slot)
            except (EcditError, OSError) as error:
                reason = str(error)
            self._busy_seconds += time.monotonic() - started
            del self._running[run.name]
            self._end(run, killed, reason)

    def _end(self, run: PlannedRun, killed: Killed | None, reason: str | None) -> None:
        """Takes the state of an ended run from its folder; `reason` says why the folder could not be written."""
        try:
            self._queue.give_back(run, None if killed is None or self._stopping else killed.reason)
        except EcditError as error:
            reason = str(error)
        progress = read_progress(self._folder.run_dir(run), run.images)
        if reason is not None:
            progress = replace(progress, state="failed", reason=reason)
        self._progress[run.name] = progress

    def _refresh(self) -> None:
        """Reads the state of the runs here and of those of other sweeps."""
        self._queue.renew()
        for name in self._queue.changed() - self._running.keys():
            progress = read_progress(self._folder.run_dir(self._planned[name]), self._planned[name].images)
            reason = self._queue.lock_errors.get(name)
            self._progress[name] = progress if reason is None else replace(progress, state="failed", reason=reason)
            if name in self._queue.orphans:
                self._progress[name] = replace(progress, reason=self._queue.orphans[name])
        for name, progress in self._progress.items():
            if progress.waits_for != (parent := self._queue.parents_awaited.get(name)):
                self._progress[name] = replace(progress, waits_for=parent)
        for name in self._running:
            run_dir, planned = self._folder.run_dir(self._planned[name]), self._planned[name]
            progress = read_progress(run_dir, planned.images, evaluations=False)
            # Until the new process has written its status, the folder still holds the status of the old one.
            self._progress[name] = replace(progress, state="running", reason=None)

    def _snapshot(self) -> SweepSnapshot:
        seconds = time.monotonic() - self._started
        events = self._queue.take_events()
        return SweepSnapshot(list(self._progress.values()), seconds, self._seconds_left(), self._stopping, events)

    def _seconds_left(self) -> float | None:
        """Returns the seconds left at this session's rate of a slot, evaluation and start-up included."""
        costs = self._image_costs
        gained = {name: run.images_seen - self._images_before[name] for name, run in self._progress.items()}
        done = sum(max(0, images) * costs[name] for name, images in gained.items())
        busy = self._busy_seconds + sum(time.monotonic() - started for started in self._running.values())
        unfinished = [
            *(self._progress[name] for name in self._running),
            *(self._progress[run.name] for run in self._queue.waiting()),
        ]
        if done <= 0 or busy <= 0:
            return None
        seen = {run.name: max(run.images_seen, self._planned[run.name].trunk_images) for run in unfinished}
        left = ((self._planned[name].images - images) * costs[name] for name, images in seen.items())
        return schedule_seconds(left, done / busy, self._executor.num_slots)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a signal that nohup ignores stays ignored
                loop.add_signal_handler(number, self._stop, number)

    def _stop(self, number: signal.Signals) -> None:
        """Stops after the running runs have saved; a second Ctrl-C kills them, without a new checkpoint."""
        if self._stopping and number == signal.SIGINT:
            self._executor.kill()
        else:
            self._executor.stop()
        self._stopping = True
        self._queue.clear()
