"""Samplers, which integrate a velocity field from noise at t = 1 to an image at t = 0.

There are Euler and Heun over a grid of times, with SD3's timestep shift, and classifier-free guidance (Ho and Salimans
2022) with one batched call for both branches. A sampler depends only on a function `velocity(x, time_B)`.

Legend: B images, C channels, H, W height and width, N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""A velocity field: (x_BCHW, time_B) -> velocity_BCHW."""
Caption = TypeVar("Caption", Tensor, tuple[Tensor, Tensor, Tensor])
"""The captions of a batch as the network takes them: one tensor or three, each [B, ...]."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of strength `scale` at times `start <= t <= stop`; a scale of 1 is no guidance."""

    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0

    def covers(self, time: float) -> bool:
        """Returns whether both branches are needed at `time`."""
        return self.scale != 1.0 and self.start <= time <= self.stop


def time_grid(num_steps: int, shift: float = 1.0) -> list[float]:
    """Returns N + 1 times from 1 to 0; `shift` > 1 spends more of the steps near noise (SD3, equation 23)."""
    even = [1 - step / num_steps for step in range(num_steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


def guided(
    velocity: Callable[[Tensor, Tensor, Caption], Tensor], caption: Caption, null: Caption, guidance: Guidance
) -> Velocity:
    """Returns the guided velocity field u + scale (c - u).

    One call on a doubled batch yields both the conditional velocity c and the velocity u of the null caption.
    """
    both_captions = _joined(caption, null)

    def field(x_BCHW: Tensor, time_B: Tensor) -> Tensor:
        if not guidance.covers(float(time_B[0])):
            return velocity(x_BCHW, time_B, caption)
        both = velocity(x_BCHW.repeat(2, 1, 1, 1), time_B.repeat(2), both_captions)
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, guidance.scale)

    return field


def _joined(caption: Caption, null: Caption) -> Caption:
    """Concatenates two batches of captions, tensor by tensor."""
    if isinstance(caption, Tensor):
        return torch.cat([caption, null])
    (text, length, pooled), (null_text, null_length, null_pooled) = caption, null
    return torch.cat([text, null_text]), torch.cat([length, null_length]), torch.cat([pooled, null_pooled])


def euler(velocity: Velocity, noise_BCHW: Tensor, times: list[float]) -> Iterator[Tensor]:
    """Yields x after each step of Euler's first-order method; the last is the image."""
    x = noise_BCHW
    for start, stop in pairwise(times):
        x = x + (stop - start) * velocity(x, _full(x, start))
        yield x


def heun(velocity: Velocity, noise_BCHW: Tensor, times: list[float]) -> Iterator[Tensor]:
    """Yields x after each step of Heun's second-order method, which calls the velocity twice a step."""
    x = noise_BCHW
    for start, stop in pairwise(times):
        slope = velocity(x, _full(x, start))
        # The last step evaluates the velocity at t = 0, where that of rectified flow is finite.
        ahead = velocity(x + (stop - start) * slope, _full(x, stop))
        x = x + (stop - start) * (slope + ahead) / 2
        yield x


SAMPLERS: dict[str, Callable[[Velocity, Tensor, list[float]], Iterator[Tensor]]] = {"euler": euler, "heun": heun}


def _full(x: Tensor, time: float) -> Tensor:
    return torch.full((x.shape[0],), time, device=x.device, dtype=torch.float32)
