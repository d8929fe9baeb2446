"""Decides which runs a sweep may work on when others, on this machine or on a shared disk, work on the same folder.

A sweep locks each run before it starts it, and renews its locks every few seconds. The lock of a process that is
gone is taken over: at once where the process was on this machine, else after a long silence. A run whose own process
still works on another machine is left to it, even when the sweep that started it is gone.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from pathlib import Path

from experiments.records.lock_file import STALE_SECONDS, Holder, LockFile, Silence, holder, silence_on_disk, take
from sweeps.folder import SweepFolder
from sweeps.plan import PlannedRun

RENEW_SECONDS = 5.0
OBSERVE_SECONDS = 60.0
"""A lock is observed for at least this long, however old it looks, because the disk's clock may have been changed."""


class SharedRuns:
    """Holds the locks of the runs of a folder on which this sweep works."""

    def __init__(
        self, folder: SweepFolder, stale_seconds: float = STALE_SECONDS, observe_seconds: float = OBSERVE_SECONDS
    ) -> None:
        """Creates the object without locking anything."""
        self._folder = folder
        self._stale_seconds, self._observe_seconds = stale_seconds, observe_seconds
        self._silence = Silence()
        self._locks: dict[str, LockFile] = {}
        self._renewed = time.monotonic()

    def take(self, run: PlannedRun) -> bool:
        """Locks `run`. Returns False while it belongs to another process. Raises `StorageError`."""
        if run.name in self._locks:
            return True
        locks, run_dir = self._folder.locks(run), self._folder.run_dir(run)
        found, worker = holder(locks), holder(run_dir.locks)
        if found is not None and not self._is_gone(locks, found, found.pulse):
            return False
        if worker is not None and worker.is_dead() is None:
            signs = (worker.pulse, _changed(run_dir.status_json), _changed(run_dir.steps))
            if not self._is_gone(run_dir.locks, worker, signs):
                return False
        lock = take(locks, found)
        if lock is not None:
            self._locks[run.name] = lock
        return lock is not None

    def give_back(self, run: PlannedRun) -> None:
        """Releases the lock on `run`, so that other sweeps may work on it."""
        lock = self._locks.pop(run.name, None)
        if lock is not None:
            lock.release()

    def give_all_back(self) -> None:
        """Releases all locks."""
        while self._locks:
            self._locks.popitem()[1].release()

    def renew(self) -> None:
        """Renews all locks every few seconds, and forgets those that another sweep has taken over meanwhile."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        for name, lock in list(self._locks.items()):
            if not lock.renew():
                self._locks.pop(name).release()

    def _is_gone(self, locks: Path, found: Holder, signs: Hashable) -> bool:
        dead = found.is_dead()
        if dead is not None:
            return dead
        # On another machine only silence tells. The disk's clock counts it from before this sweep began, but it is
        # believed only after a time of observation on our own monotonic clock.
        observed = self._silence.seconds(locks, signs)
        if observed >= self._stale_seconds:
            return True
        return observed >= self._observe_seconds and silence_on_disk(locks, found) >= self._stale_seconds


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
