"""How speed is measured: sides that take turns, the machine's own peaks, and a row of target beside measured.

Sides take turns round by round with fresh random inputs, so that a machine that slows down slows all of them; a ratio
is the median over rounds of the ratio within a round. On a machine that others use too, `clock="cpu"` counts the
seconds this process computed in place of those that passed. The floor of a row is arithmetic: FLOPs at the matmul rate
and bytes at the copy rate that this very run measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from experiments.training.clock import synchronized_time

Clock = Literal["wall", "cpu"]
Side = Callable[[], Callable[[], object]]
"""Makes fresh inputs, and answers the work to be timed."""
Seconds = dict[str, list[float]]

WARM_UP_ROUNDS = 2
NO_ACCELERATOR = "no accelerator"
COPY_BYTES = 2**28
IN_A_ROW = 8
"""Steps of a layer, on an accelerator."""


@dataclass(frozen=True)
class SpeedRow:
    """One line of the table. `gap`: measured over floor, or floor over measured where more is better; 1 is the limit.

    `skipped`: why nothing was measured, and then `command` is what fills the row.
    """

    what: str
    setting: str
    measured: float | None = None
    target: float | None = None
    more_is_better: bool = False
    floor: float | None = None
    seconds: float | None = None
    peer_seconds: float | None = None
    rounds: int | None = None
    skipped: str | None = None
    command: str | None = None

    @property
    def gap(self) -> float | None:
        """How far from the floor; None without one."""
        if self.measured is None or self.floor is None:
            return None
        return self.floor / self.measured if self.more_is_better else self.measured / self.floor

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.measured is None or self.target is None:
            return None
        return self.measured >= self.target if self.more_is_better else self.measured <= self.target


@dataclass(frozen=True)
class Machine:
    """What this machine reaches in this run: the best matmul rate over some sizes, and a copy's, read and written."""

    matmul_flops_per_second: float
    copy_bytes_per_second: float

    def seconds(self, flops: float, moved_bytes: float = 0.0) -> float:
        """The least time for so much work, one after the other."""
        return flops / self.matmul_flops_per_second + moved_bytes / self.copy_bytes_per_second


def take_turns(
    sides: Mapping[str, Side], rounds: int, clock: Clock, on_round: Callable[[], None] = lambda: None, in_a_row: int = 1
) -> Seconds:
    """Seconds of each side in each round, after a warm-up; who begins changes with the round.

    `in_a_row`: so many times on inputs of their own, and the mean counts. An accelerator then works on one while the
    processor starts the next, as in training, where layer follows layer.
    """
    now = synchronized_time if clock == "wall" else time.process_time
    names = list(sides)
    seconds: Seconds = {name: [] for name in sides}
    for number in range(-WARM_UP_ROUNDS, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            works = [sides[name]() for _ in range(in_a_row)]
            started = now()
            for work in works:
                work()
            if number >= 0:
                seconds[name].append((now() - started) / in_a_row)
        on_round()
    return seconds


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def measure_machine(dtype: torch.dtype, device: torch.device, rounds: int, clock: Clock) -> Machine:
    """The rates in `dtype` on `device`, with the threads that this process has."""
    sizes = (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192)
    element = torch.empty((), dtype=dtype).element_size()
    source = torch.ones(COPY_BYTES // element, dtype=dtype, device=device)
    target = torch.empty_like(source)
    sides: dict[str, Side] = {str(size): _matmul(size, dtype, device) for size in sizes}
    seconds = take_turns({**sides, "copy": lambda: lambda: target.copy_(source)}, rounds, clock)
    return Machine(
        max(2 * size**3 / statistics.median(seconds[str(size)]) for size in sizes),
        2 * COPY_BYTES / statistics.median(seconds["copy"]),
    )


def _matmul(size: int, dtype: torch.dtype, device: torch.device) -> Side:
    out = torch.empty(size, size, dtype=dtype, device=device)

    def side() -> Callable[[], object]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return lambda: torch.mm(a, b, out=out)

    return side
