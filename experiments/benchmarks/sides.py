"""Timing for benchmarks: sides that take turns, the peak rates of the machine, and rows of target and measurement.

The sides take turns round by round with fresh random inputs, so that a machine that slows down slows all of them; a
ratio is the median over rounds of the ratio within a round. On a machine that others use too, `clock="cpu"` counts the
CPU seconds of this process instead of wall seconds. The floor of a row is computed: FLOPs at the matmul rate plus bytes
at the copy rate that were measured in this same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from experiments.routing.contract import FeedForwardOutput
from experiments.training.clock import synchronized_time

Clock = Literal["wall", "cpu"]
Side = Callable[[], Callable[[], object]]
"""A side makes fresh inputs, and returns the function to be timed."""
Seconds = dict[str, list[float]]

WARM_UP_ROUNDS = 2
NO_ACCELERATOR = "no accelerator"
COPY_BYTES = 2**28
IN_A_ROW = 8
"""The number of steps of a layer that are timed together on an accelerator."""


@dataclass(frozen=True)
class SpeedRow:
    """One line of the table of benchmarks.

    `gap` is measured over floor, or floor over measured where more is better, so that 1 is the limit. `skipped` says
    why nothing was measured; `command` then is the command that fills the row.
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
        """Returns the ratio of the measurement to the floor, or None without one."""
        if self.measured is None or self.floor is None:
            return None
        return self.floor / self.measured if self.more_is_better else self.measured / self.floor

    @property
    def is_met(self) -> bool | None:
        """Returns whether the target is met, or None without one."""
        if self.measured is None or self.target is None:
            return None
        return self.measured >= self.target if self.more_is_better else self.measured <= self.target


@dataclass(frozen=True)
class Machine:
    """The rates that this machine reaches in this run.

    They are the best matmul rate over several sizes, and the rate of a copy, which counts bytes read and bytes written.
    """

    matmul_flops_per_second: float
    copy_bytes_per_second: float

    def seconds(self, flops: float, moved_bytes: float = 0.0) -> float:
        """Returns the least seconds for this many FLOPs and then this many bytes moved."""
        return flops / self.matmul_flops_per_second + moved_bytes / self.copy_bytes_per_second


def take_turns(
    sides: Mapping[str, Side], rounds: int, clock: Clock, on_round: Callable[[], None] = lambda: None, in_a_row: int = 1
) -> Seconds:
    """Returns the seconds of each side in each round, after warm-up rounds; the side that begins changes.

    With `in_a_row` each side runs that many times in succession, on inputs of their own, and the mean counts. An
    accelerator then works on one while the processor launches the next, as in training, where layer follows layer.
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


def layer_side(
    layer: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype, with_losses: bool = False
) -> Side:
    """Returns a side that runs one step of a layer, forward and backward, on fresh random inputs of this shape.

    `with_losses` adds the auxiliary loss of a `FeedForwardOutput` to what is differentiated.
    """

    def side() -> Callable[[], object]:
        x, direction = (torch.randn(*shape, device=device, dtype=dtype) for _ in range(2))
        x.requires_grad_()

        def work() -> None:
            layer.zero_grad(set_to_none=True)
            answer = layer(x)
            out = answer.out_BTD if isinstance(answer, FeedForwardOutput) else answer
            roots, gradients = [out], [direction]
            if with_losses and answer.auxiliary_loss.requires_grad:
                roots, gradients = [*roots, answer.auxiliary_loss], [*gradients, torch.ones_like(answer.auxiliary_loss)]
            torch.autograd.backward(roots, gradients)

        return work

    return side


def machine_words(device: torch.device, dtype: torch.dtype, has_neighbour: bool = False) -> str:
    """Returns the precision and the device of a measurement in words, for the setting of its row."""
    where = f"{device.type}, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else "1 device"
    return f"{str(dtype).removeprefix('torch.')}, {where}{', a busy neighbour' if has_neighbour else ''}"


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Returns the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def measure_machine(dtype: torch.dtype, device: torch.device, rounds: int, clock: Clock) -> Machine:
    """Measures the rates in `dtype` on `device`, with the threads that this process has."""
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
