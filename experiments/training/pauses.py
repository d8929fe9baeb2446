"""A clock of training that pauses while the process is stopped: by SIGSTOP, a suspended job or a paused container.

The clocks of the system go on meanwhile, so that hours of suspension would count as training time. A thread reads the
clock every second; when a reading comes much too late, no thread could run in between. Waiting for data, for another
process or for an accelerator causes no such gap, because the thread goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

TICK_SECONDS = 1.0
GAP_SECONDS = 5.0
"""A reading that is later than this means that the process was stopped; a busy machine causes shorter delays."""


class TrainingClock:
    """A context manager whose `now` returns seconds on a clock that pauses while this process is stopped."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Makes the clock; it calls `warn` with a message for every pause."""
        self._warn = warn
        self._paused_seconds = 0.0
        self._last = time.perf_counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="clock", daemon=True)

    def __enter__(self) -> Self:
        """Starts the thread that reads the clock."""
        self._last = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def now(self) -> float:
        """Returns seconds since a fixed moment, without those in which the process was stopped."""
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
