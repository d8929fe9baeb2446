"""Samples images of captions or of classes and, where it is asked for, records where in them the compute went.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.evaluation.inference.routing_maps import RoutingWatcher
from experiments.evaluation.sampling.batches import sampled_batches
from experiments.evaluation.sampling.generate import caption_ids
from experiments.evaluation.sampling.load_run import LoadedRun
from experiments.evaluation.sampling.prompts import require_unequal_compute, texts_of
from experiments.evaluation.sampling.settings import Conditions
from experiments.records.compute_map import ComputeMap


@dataclass(frozen=True)
class MappedSamples:
    """Sampled images [B, C, H, W] in [-1, 1] on the CPU, with their compute map where it was asked for."""

    images_BCHW: Tensor
    compute_map: ComputeMap | None


def sample_captions(
    run: LoadedRun,
    captions: Sequence[str] | Sequence[int],
    conditions: Conditions,
    wants_map: bool,
    on_call: Callable[[], None] = lambda: None,
    noise_BCHW: Tensor | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> MappedSamples:
    """Samples one image of each caption, or class, as `sampled_batches` does.

    Raises `ConfigError` before anything is sampled, for words that the run has never seen and for the map of a model
    in which all tokens get the same compute.
    """
    if wants_map:
        require_unequal_compute(run)
    caption_ids(run.config, captions)  # raises for unknown words and classes
    watcher = RoutingWatcher(run, [""] * len(captions), range(len(captions))) if wants_map else None
    batches = []
    for batch in sampled_batches(
        run.model, run.config, captions, conditions, watcher=watcher, on_call=on_call, noise_BCHW=noise_BCHW,
        decode=decode,
    ):  # fmt: skip
        batches.append(batch.images_BCHW)
        if watcher is not None:
            watcher.end_batch(batch.images_BCHW)
    drawn = watcher.compute_map(dict(enumerate(texts_of(run, captions)))) if watcher is not None else None
    return MappedSamples(torch.cat(batches), drawn)
