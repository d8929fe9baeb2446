"""Where the time of a step goes. The loop names its parts; unless somebody measures, nothing is timed.

Parts: `forward`, `backward`, `optimizer`; what is left of an iteration (waiting for data, the moving average, reading
the loss back, rows, signals) is not named and found by subtraction.
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
    """What the loop asks of a clock."""

    def part(self, name: Part) -> AbstractContextManager[None]:
        """A context around one part of a step."""


class NoClock:
    """Times nothing and costs nothing."""

    def part(self, name: Part) -> AbstractContextManager[None]:
        """An empty context."""
        return _NOTHING


class RecordingClock:
    """Sums the seconds of each part until `take`; waits for the accelerator where there is one."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Time what happens inside."""
        started = synchronized_time()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + synchronized_time() - started

    def take(self) -> dict[str, float]:
        """The seconds by part since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken


def synchronized_time() -> float:
    """Seconds on a clock, once the accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
