"""A clock of training that stands still while the process is stopped: by SIGSTOP, by a cluster that suspends a job, by
a container that is paused.

The clocks of the system go on meanwhile, and hours of standing still would count as seconds of training. A thread looks
at the clock every second; a look that comes far too late says that nothing could run. Waiting for data, for another
process or for an accelerator is no such gap, because other threads go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

TICK_SECONDS = 1.0
GAP_SECONDS = 5.0
"""A look that is later than this is no matter of a busy machine."""


class TrainingClock:
    """A context in which `now` is seconds on a clock that stands still while this process is stopped."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """`warn` hears of every gap."""
        self._warn = warn
        self._paused_seconds = 0.0
        self._last = time.perf_counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="clock", daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._last = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def now(self) -> float:
        """Seconds since some moment, without those in which the process was stopped."""
        with self._lock:
            now = time.perf_counter()
            late = now - self._last - TICK_SECONDS
            if late > GAP_SECONDS:
                self._paused_seconds += late
                self._warn(f"This process was stopped for {late:.0f} s, which do not count as training.")
            self._last = now
            return now - self._paused_seconds

    def _tick(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            self.now()
