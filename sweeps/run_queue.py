"""The queue of a sweep: which run is started next, and which runs come back after they have ended.

Runs are taken in the order of the plan, without those that wait for a retry and those that another sweep works on or
has finished. A run that was killed comes back a few times, each time after a longer wait; one that failed by itself
does not. A run that another sweep of the same folder works on is looked at regularly until it is finished or free
again.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from experiments.errors import StorageError
from experiments.records.record_types import State, Status
from experiments.records.writer import write_status
from sweeps.folder import SweepFolder
from sweeps.plan import PlannedRun
from sweeps.progress import Event, RunProgress, read_progress, why_not_started
from sweeps.sharing import SharedRuns
from sweeps.trunks import is_waiting

LOOK_SECONDS = 1.0
"""Seconds between two looks at a run of another sweep."""

Ending = tuple[float | None, str | None]


@dataclass(frozen=True)
class Retries:
    """The number of retries of a killed run and the first wait; every further wait is twice as long."""

    count: int = 2
    backoff_seconds: float = 5.0


class RunQueue:
    """The runs of one sweep that are still to be executed."""

    def __init__(
        self,
        folder: SweepFolder,
        runs: Iterable[PlannedRun],
        progress: Mapping[str, RunProgress],
        shared: SharedRuns,
        retries: Retries,
        retry_failed: bool,
    ) -> None:
        """Fills the queue; `progress` is the state of each of `runs`, and `retry_failed` starts failed ones again."""
        finished = ("done",) if retry_failed else ("done", "failed")
        self._folder, self._shared, self._retries = folder, shared, retries
        self._waiting = {run.name: run for run in runs if progress[run.name].state not in finished}
        self._old_failures: dict[str, Ending] = {
            name: _ending(run) for name, run in progress.items() if run.state == "failed"
        }
        self._not_before: dict[str, float] = {}
        self._attempts: Counter[str] = Counter()
        self._elsewhere: set[str] = set()
        self._changed: set[str] = set()
        self._events: list[Event] = []
        self._taken: set[str] = set()
        self._next_look = 0.0
        self.lock_errors: dict[str, str] = {}
        """The runs whose lock could not be written, and the error of each."""
        self.orphans: dict[str, str] = {}
        """The runs whose trunk nobody trains any more, so that they are not started, and the reason of each."""
        self.parents_awaited: dict[str, str] = {}
        """The runs that wait for the checkpoint of another one, and the name of that one."""

    @property
    def is_empty(self) -> bool:
        """Returns whether no run is left to be taken, now or later."""
        return not self._waiting

    def waiting(self) -> list[PlannedRun]:
        """Returns the runs that nobody works on, in the order of the plan."""
        return [run for name, run in self._waiting.items() if name not in self._elsewhere]

    def take(self) -> PlannedRun | None:
        """Locks and returns the next run, or None while all that is left has to wait."""
        now = time.monotonic()
        for name, run in list(self._waiting.items()):
            if self._not_before.get(name, now) > now or self._must_wait(run, now):
                continue
            try:
                is_ours = not self._is_settled(run) and self._shared.take(run)
            except StorageError as error:
                self.lock_errors[name] = str(error)
                self._drop(name)
                continue
            if is_ours and self._is_settled(run):  # its last holder finished it just before it was locked
                self._shared.give_back(run)
            elif is_ours:
                self._waiting.pop(name)
                self._elsewhere.discard(name)
                self.parents_awaited.pop(name, None)
                self._taken.add(name)
                return run
            elif name in self._waiting:
                self._look_later(name, now)
        return None

    def give_back(self, run: PlannedRun, killed: str | None) -> None:
        """Takes back a run that has ended. `killed` says how, where it did not end by itself. Raises `StorageError`."""
        try:
            if killed is not None:
                self._try_again(run, killed)
        finally:
            self._taken.discard(run.name)
            self._shared.give_back(run)

    def changed(self) -> set[str]:
        """Returns the names of the runs whose state another sweep may have changed."""
        changed, self._changed = self._changed | self._elsewhere, set()
        return changed

    def take_events(self) -> list[Event]:
        """Returns the events since the last call."""
        events, self._events = self._events, []
        return events

    def renew(self) -> None:
        """Renews the locks, which shows other sweeps that this one lives, and looks for the trunks of waiting runs."""
        self._shared.renew()
        if time.monotonic() < self._next_look:
            return
        self._next_look, awaited = time.monotonic() + LOOK_SECONDS, self.parents_awaited
        awaited.clear()
        for name, run in self._waiting.items():
            # One look at the disk for each family: a run that waits itself has no checkpoint for the next one.
            if run.parent is not None and (run.parent in awaited or is_waiting(self._folder, run)):
                awaited[name] = run.parent

    def clear(self) -> None:
        """Empties the queue: nothing will be started any more."""
        self._waiting.clear()
        self.parents_awaited.clear()

    def close(self) -> None:
        """Releases all locks, so that other sweeps may continue."""
        self._shared.give_all_back()

    def _must_wait(self, run: PlannedRun, now: float) -> bool:
        """Returns whether the checkpoint from which `run` continues is missing; drops `run` if nobody will write it.

        The parent is trained by this sweep, or by another one, which then holds it in our queue.
        """
        if run.parent is None or not is_waiting(self._folder, run):
            return False
        if run.parent in self._waiting or run.parent in self._taken:
            self._not_before[run.name] = now + LOOK_SECONDS
            return True
        if not is_waiting(self._folder, run):  # the parent ended between the two looks
            return False
        self.orphans[run.name] = self.orphans.get(run.parent) or why_not_started(self._folder, run.parent, run)
        self._drop(run.name)
        return True

    def _is_settled(self, run: PlannedRun) -> bool:
        """Returns whether another sweep has brought `run` to its end; it then leaves the queue."""
        progress = read_progress(self._folder.run_dir(run), run.images, evaluations=False)
        is_new_failure = progress.state == "failed" and self._old_failures.get(run.name) != _ending(progress)
        if progress.state == "done" or is_new_failure:
            self._drop(run.name)
            return True
        return False

    def _drop(self, name: str) -> None:
        self._waiting.pop(name, None)
        self._elsewhere.discard(name)
        self.parents_awaited.pop(name, None)
        self._changed.add(name)

    def _look_later(self, name: str, now: float) -> None:
        self._not_before[name] = now + LOOK_SECONDS
        if name not in self._elsewhere:
            self._elsewhere.add(name)
            self._events.append(Event(name, "another sweep is training it"))

    def _try_again(self, run: PlannedRun, killed: str) -> None:
        self._attempts[run.name] += 1
        attempts, run_dir = self._attempts[run.name], self._folder.run_dir(run)
        if attempts > self._retries.count:
            times = f", {attempts} times" if attempts > 1 else ""
            write_status(run_dir, last_word(run, run_dir.read_status(), killed + times))
            return
        seconds = self._retries.backoff_seconds * 2 ** (attempts - 1)
        self._not_before[run.name] = time.monotonic() + seconds
        self._waiting[run.name] = run
        progress = read_progress(run_dir, run.images, evaluations=False)
        if progress.state == "failed":  # processes of the run that were not killed reported this failure
            self._old_failures[run.name] = _ending(progress)
        text = f"{killed}; tried again in {seconds:.0f} s ({attempts} of {self._retries.count})"
        self._events.append(Event(run.name, text))


def killed_by(number: int) -> str:
    """Returns why a process ended that a signal has ended, such as `killed by SIGKILL, perhaps for lack of memory`."""
    name = signal.Signals(number).name
    return f"killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")


def last_word(run: PlannedRun, status: Status | None, reason: str, state: State = "failed") -> Status:
    """Returns the final status of a run whose process did not write one."""
    images_seen = 0 if status is None else status.images_seen
    return Status(
        state=state, images_seen=images_seen, images_total=run.images, heartbeat=time.time(), reason=reason,
        checkpoint_images=None if status is None else status.checkpoint_images,
    )  # fmt: skip


def _ending(run: RunProgress) -> Ending:
    """Returns what tells one failure of a run from the next one."""
    return (run.heartbeat, run.reason)
