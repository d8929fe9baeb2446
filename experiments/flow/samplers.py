"""The classifier-free guidance of a velocity field, and the samplers of ordinary differential equations.

A sampler takes a noisy image on the straight path from the first time of a grid to the image at t = 0. It depends only
on a field `(x, time_B) -> Predicted`, whose velocity every objective gives (`objective_contract.py`). Guidance is that
of Ho and Salimans 2022, with one batched call for both branches.

A step of Euler's method along the straight path goes to the time s at x_s = (1 - s) x_0 + s e, with the image and the
noise that the prediction implies. That is the step of DDIM (Song et al. 2020, arXiv 2010.02502, equation 12 without
noise), and that of Euler's method over sigma in EDM: the three names share one function, and the objective's grid of
times makes the difference.

Legend: B images, C channels, H, W height and width, N steps.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from experiments.config.sampler_rows import SAMPLERS
from experiments.flow.objective_contract import Objective, Predicted

Field = Callable[[Tensor, Tensor], Predicted]
"""The prediction at noisy images on the straight path: (x_BCHW, time_B) -> `Predicted`."""
Caption = TypeVar("Caption", Tensor, tuple[Tensor, Tensor, Tensor])
"""The captions of a batch as the network takes them: one tensor or three, each [B, ...]."""
Sampler = Callable[[Field, Tensor, list[float], Objective], Iterator[Tensor]]
"""Yields x_BCHW after each step from standard normal noise; the last is the image."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of strength `scale` at times `start <= t <= stop`; a scale of 1 is no guidance.

    With `channels` only the first of them are guided, and the others are those of the caption: the public code of DiT
    guides three of the four channels of a latent.
    """

    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    channels: int | None = None

    def covers(self, time: float) -> bool:
        """Returns whether both branches are needed at `time`.

        Times are float32, in which 0.8 is larger than as a Python number and 0.9 smaller. The ends are therefore
        compared in float32 too, so that a step whose time is an end is always guided.
        """
        start, at, stop = np.array([self.start, time, self.stop], dtype=np.float32)
        return self.scale != 1.0 and bool(start <= at <= stop)


def find_sampler(name: str) -> Sampler:
    """Returns the function of a sampler of `SAMPLERS`."""
    found: Sampler = pkgutil.resolve_name(SAMPLERS[name].implementation)
    return found


def num_calls(name: str, num_steps: int, objective: Objective) -> int:
    """Returns how often a sampler calls its field."""
    again = SAMPLERS[name].calls_a_step - 1
    return num_steps * (1 + again) - (0 if objective.evaluates_image else again)


def guided(
    field: Callable[[Tensor, Tensor, Caption], Predicted], caption: Caption, null: Caption, guidance: Guidance
) -> Field:
    """Returns the guided field u + scale (c - u).

    One call on a doubled batch yields both the conditional velocity c and the velocity u of the null caption. A learned
    variance is that of the caption, as in the public code of DiT.
    """
    both_captions = _joined(caption, null)

    def guided_field(x_BCHW: Tensor, time_B: Tensor) -> Predicted:
        if not guidance.covers(float(time_B[0])):
            return field(x_BCHW, time_B, caption)
        velocity, variance = field(x_BCHW.repeat(2, 1, 1, 1), time_B.repeat(2), both_captions)
        conditional, unconditional = velocity.chunk(2)
        own = None if variance is None else variance.chunk(2)[0]
        mixed = torch.lerp(unconditional, conditional, guidance.scale)
        if guidance.channels is not None:
            mixed[:, guidance.channels :] = conditional[:, guidance.channels :]
        return Predicted(mixed, own)

    return guided_field


def _joined(caption: Caption, null: Caption) -> Caption:
    """Concatenates two batches of captions, tensor by tensor."""
    if isinstance(caption, Tensor):
        return torch.cat([caption, null])
    (text, length, pooled), (null_text, null_length, null_pooled) = caption, null
    return torch.cat([text, null_text]), torch.cat([length, null_length]), torch.cat([pooled, null_pooled])


def euler(field: Field, noise_BCHW: Tensor, times: list[float], objective: Objective) -> Iterator[Tensor]:
    """Yields x after each step of Euler's first-order method, which is DDIM's too."""
    x = times[0] * noise_BCHW
    for start, stop in pairwise(times):
        x = x + (stop - start) * field(x, full_times(x, start)).velocity_BCHW
        yield x


def heun(field: Field, noise_BCHW: Tensor, times: list[float], objective: Objective) -> Iterator[Tensor]:
    """Yields x after each step of Heun's second-order method, which calls the field twice a step.

    It integrates v over t along the straight path, or the noise over sigma / alpha where the image keeps its scale.
    """

    def position(time: float) -> float:
        return time if objective.is_straight else time / (1 - time)

    def scale(time: float) -> float:
        return 1.0 if objective.is_straight else 1 / (1 - time)

    def slope(x: Tensor, time: float) -> Tensor:
        velocity = field(x, full_times(x, time)).velocity_BCHW
        return velocity if objective.is_straight else x + (1 - time) * velocity

    x = times[0] * noise_BCHW
    for start, stop in pairwise(times):
        state, step, first = x * scale(start), position(stop) - position(start), slope(x, start)
        x = (state + step * first) / scale(stop)
        if stop > 0 or objective.evaluates_image:
            x = (state + step * (first + slope(x, stop)) / 2) / scale(stop)
        yield x


def full_times(x_BCHW: Tensor, time: float) -> Tensor:
    """Returns the time of every image, float32 [B]."""
    return torch.full((x_BCHW.shape[0],), time, device=x_BCHW.device, dtype=torch.float32)
