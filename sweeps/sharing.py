"""Decides which runs a sweep may work on when others, on this machine or on a shared disk, work on the same folder.

A sweep claims each run before it starts it, and renews its claims every few seconds. The claim of a process that is
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
"""A claim is watched for this long, however old it looks: the clock of the disk may have been changed."""


class SharedRuns:
    """The runs of `folder` that this sweep has claimed."""

    def __init__(
        self, folder: SweepFolder, stale_seconds: float = STALE_SECONDS, observe_seconds: float = OBSERVE_SECONDS
    ) -> None:
        """Creates the object without claiming anything."""
        self._folder = folder
        self._stale_seconds, self._observe_seconds = stale_seconds, observe_seconds
        self._silence = Silence()
        self._claims: dict[str, LockFile] = {}
        self._renewed = time.monotonic()

    def take(self, run: PlannedRun) -> bool:
        """Claims `run`. Returns False while it belongs to another process. Raises `StorageError`."""
        if run.name in self._claims:
            return True
        claims, run_dir = self._folder.claims(run), self._folder.run_dir(run)
        found, worker = holder(claims), holder(run_dir.claims)
        if found is not None and not self._is_gone(claims, found, found.pulse):
            return False
        if worker is not None and worker.is_dead() is None:
            signs = (worker.pulse, _changed(run_dir.status_json), _changed(run_dir.steps))
            if not self._is_gone(run_dir.claims, worker, signs):
                return False
        claim = take(claims, found)
        if claim is not None:
            self._claims[run.name] = claim
        return claim is not None

    def give_back(self, run: PlannedRun) -> None:
        """Releases the claim on `run`, so that other sweeps may work on it."""
        claim = self._claims.pop(run.name, None)
        if claim is not None:
            claim.release()

    def give_all_back(self) -> None:
        """Releases all claims."""
        while self._claims:
            self._claims.popitem()[1].release()

    def renew(self) -> None:
        """Renews all claims every few seconds, and forgets those that another sweep has taken over meanwhile."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        for name, claim in list(self._claims.items()):
            if not claim.renew():
                self._claims.pop(name).release()

    def _is_gone(self, claims: Path, found: Holder, signs: Hashable) -> bool:
        dead = found.is_dead()
        if dead is not None:
            return dead
        observed = self._silence.seconds(claims, signs)
        if observed >= self._stale_seconds:
            return True
        return observed >= self._observe_seconds and silence_on_disk(claims, found) >= self._stale_seconds


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
