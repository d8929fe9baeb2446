"""Clocks that measure the parts of a training step. The loop names the parts; by default nothing is timed.

The parts are `forward`, `backward` and `optimizer`. The rest of an iteration (waiting for data, the moving average,
reading the loss back, rows, signals) has no name; its time is found by subtraction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

import torch

Part = Literal["forward", "backward", "optimizer"]
_NOTHING: AbstractContextManager[None] = nullcontext()


class StepClock(Protocol):
    """The interface of a clock as the loop uses it."""

    def part(self, name: Part) -> AbstractContextManager[None]:
        """Returns a context manager that encloses one part of a step."""


class NoClock:
    """The default clock, which measures nothing and costs no time."""

    def part(self, name: Part) -> AbstractContextManager[None]:
        """Returns a context manager that does nothing."""
        return _NOTHING


class RecordingClock:
    """A clock that sums the seconds of each part until `take`.

    It waits for the accelerator at the borders of a part, since kernels run asynchronously. This costs some time
    itself.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Adds the seconds that pass within this context to the part `name`."""
        started = synchronized_time()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + synchronized_time() - started

    def take(self) -> dict[str, float]:
        """Returns the seconds of each part since the last call, and starts again from 0."""
        taken, self._seconds = self._seconds, {}
        return taken


def synchronized_time() -> float:
    """Returns the seconds of a monotonic clock after the accelerator has finished its queued work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
