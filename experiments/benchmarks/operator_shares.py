"""Sums the seconds of a training step by groups of operators, with torch's profiler, to say where two sides differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import profile

GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention", "flash", "sdpa"),
    "matrix products": ("mm", "linear", "conv"),
    "activations": ("gelu", "silu", "sigmoid", "softmax"),
    "norms": ("norm",),
    "choice, gather and scatter": (
        "index", "gather", "scatter", "embedding", "sort", "topk", "one_hot", "nonzero", "bincount", "masked",
        "repeat_interleave",
    ),
    "copies and fills": ("copy", "clone", "cat", "contiguous", "zero", "fill", "stack", "_to"),
}  # fmt: skip
"""Parts of the names of operators, of which the first group that has one counts."""
UPDATE, REST = "optimizer and average", "the rest"


def profiled(gradients: Callable[[], object], update: Callable[[], object]) -> dict[str, float]:
    """Returns the seconds of each group in `gradients`, and those of all operators in `update`.

    Time in which no operator runs does not count.
    """
    seconds = dict.fromkeys((*GROUPS, REST, UPDATE), 0.0)
    for event in _events(gradients):
        seconds[_group(event.key)] += _seconds(event)
    seconds[UPDATE] = sum(map(_seconds, _events(update)))
    return seconds


def _group(name: str) -> str:
    short = name.removeprefix("aten::").lower()
    return next((group for group, parts in GROUPS.items() if any(part in short for part in parts)), REST)


def _events(work: Callable[[], object]) -> list[Any]:
    """Returns the profiler's sums by operator; kernels of an accelerator count with the operator that launched them."""
    with profile() as recorded:
        work()
    return [event for event in recorded.key_averages() if event.device_type.name == "CPU"]


def _seconds(event: Any) -> float:
    """Returns the seconds of an operator itself, on the accelerator where there is one."""
    on_device = torch.accelerator.is_available()
    microseconds: float = event.self_device_time_total if on_device else event.self_cpu_time_total
    return microseconds / 1e6
