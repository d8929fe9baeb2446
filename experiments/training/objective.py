"""The velocity loss of a batch, which training minimises and validation reports.

Legend: B images, K tokens, P values of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.data.loader import Batch
from experiments.flow.rectified_flow import interpolate, velocity_loss, velocity_target
from experiments.models.dit import DiTOutput, gather_tokens
from experiments.models.embed import patchify


def forward_loss(model: torch.nn.Module, batch: Batch, patch_size: int) -> tuple[Tensor, DiTOutput]:
    """Returns the loss of each image, float32 [B], and the output of the model."""
    noisy_BCHW = interpolate(batch.pixels_BCHW, batch.noise_BCHW, batch.time_B)
    output: DiTOutput = model(noisy_BCHW, batch.time_B, batch.caption, batch.keep_BK)
    target_BKP = patchify(velocity_target(batch.pixels_BCHW, batch.noise_BCHW), patch_size)
    if batch.keep_BK is not None:
        target_BKP = gather_tokens(target_BKP, batch.keep_BK)
    return velocity_loss(output.velocity_BKP, target_BKP), output


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch with every tensor on `device`."""
    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in vars(batch).items()
    }
    return Batch(**moved)


def micro_batches_of(batch: Batch, accumulation: int) -> Iterator[Batch]:
    """Yields the batch in `accumulation` equal parts."""
    if accumulation == 1:
        yield batch
        return
    pieces: dict[str, Sequence[Any]] = {
        name: [None] * accumulation if value is None else value.chunk(accumulation)
        for name, value in vars(batch).items()
    }
    for number in range(accumulation):
        yield Batch(**{name: piece[number] for name, piece in pieces.items()})
