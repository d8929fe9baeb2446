"""Samples many images from captions, a batch at a time, under given conditions.

Image i starts from noise number i, so that it is the same whatever the size of the batches (where routing does not
depend on the batch). The caller decides what is done with the images; a watcher of the routed layers is told where a
batch begins.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from experiments.config.data_sets import data_set_of
from experiments.config.schema import RunConfig
from experiments.evaluation.sampling.finite import require_finite_images
from experiments.evaluation.sampling.generate import (
    Prompts,
    empty_of,
    image_noise,
    integrate,
    moved,
    part_of,
    read_prompts,
    sample,
)
from experiments.evaluation.sampling.settings import Conditions
from experiments.flow.objective_contract import objective_of
from experiments.flow.samplers import num_calls as calls_of_sampler
from experiments.models.dit import DiT, DiTOutput


class Watcher(Protocol):
    """Sees every call of the model."""

    def begin_batch(self, num_images: int, first_number: int) -> None:
        """Begins a batch of `num_images` images, the first of which has the number `first_number`."""

    def watch(self, time: float, output: DiTOutput) -> None:
        """Sees one call at `time`."""


@dataclass(frozen=True)
class SampledBatch:
    """Sampled images on the CPU, float32 in [-1, 1], and their numbers."""

    numbers: range
    images_BCHW: Tensor


def sampled_batches(
    model: DiT,
    config: RunConfig,
    captions: Prompts,
    conditions: Conditions,
    numbers: range | None = None,
    watcher: Watcher | None = None,
    on_call: Callable[[], None] = lambda: None,
    decode: Callable[[Tensor], Tensor] | None = None,
    noise_BCHW: Tensor | None = None,
) -> Iterator[SampledBatch]:
    """Yields images of `captions`, classes or features; caption i belongs to number `numbers[i]` (default: from 0 on).

    `noise_BCHW` has the noise of every caption, by default that of its number under the seed of `conditions`. `on_call`
    is called after each call of the model, as often as `num_calls` says. `decode` turns the latents of a run on latents
    into pixels; without it they are yielded as they are. Raises `RunFailedError` where an image is not
    finite.
    """
    num_captions = len(captions[0]) if isinstance(captions, tuple) else len(captions)
    numbers = numbers if numbers is not None else range(num_captions)
    device = next(model.parameters()).device

    def watch(time: float, output: DiTOutput) -> None:
        if watcher is not None:
            watcher.watch(time, output)
        on_call()

    for first in range(0, num_captions, conditions.batch_images):
        here = slice(first, first + conditions.batch_images)
        mine = numbers[here]
        if watcher is not None:
            watcher.begin_batch(len(mine), mine.start)
        noise = image_noise(config, mine, conditions.seed) if noise_BCHW is None else noise_BCHW[here]
        caption: Any = moved(read_prompts(config, part_of(captions, here)), device)
        noise, empty = noise.to(device), cast(Any, empty_of(model, config, caption))
        if data_set_of(config).has_pixels:
            images_BCHW = sample(model, caption, noise, conditions.sampler, watch, empty)
        else:
            images_BCHW = integrate(model, caption, empty, noise, conditions.sampler, watch)
        require_finite_images(images_BCHW)
        if decode is not None:
            images_BCHW = decode(images_BCHW)
        yield SampledBatch(mine, images_BCHW.float().cpu())


def num_calls(num_captions: int, conditions: Conditions, config: RunConfig) -> int:
    """Returns how often `sampled_batches` calls the model."""
    sampler = conditions.sampler
    calls_per_batch = calls_of_sampler(sampler.sampler, sampler.num_steps, objective_of(config.flow))
    return -(-num_captions // conditions.batch_images) * calls_per_batch


def as_pixels(images_BCHW: Tensor) -> Tensor:
    """Returns uint8 [B, H, W, C] on the CPU, from images in [-1, 1]."""
    return ((images_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
