"""The loss of a batch, which training minimises and validation reports, by the objective of the run.

Legend: B images, K tokens, P values of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.data.loader import Batch
from experiments.flow.objective_contract import Losses, interpolate, objective_of
from experiments.models.alignment_loss import misalignment
from experiments.models.dit import DiTOutput
from experiments.models.embed import gather_tokens, patchify


def forward_loss(model: torch.nn.Module, batch: Batch, config: RunConfig) -> tuple[Tensor, DiTOutput]:
    """Returns the loss of each image, float32 [B], and the output of the model."""
    losses, output = forward_losses(model, batch, config)
    return losses.loss_B, output


def forward_losses(model: torch.nn.Module, batch: Batch, config: RunConfig) -> tuple[Losses, DiTOutput]:
    """Returns the loss and the velocity error of each image, and the output of the model.

    In training with REPA its loss is added to the auxiliary loss of the output.
    """
    objective, time_B = objective_of(config.flow), batch.time_B
    noisy_BCHW = interpolate(batch.pixels_BCHW, batch.noise_BCHW, time_B)
    output: DiTOutput = model(*objective.network_input(noisy_BCHW, time_B), batch.caption, batch.keep_BK)
    if output.aligned_BKF is not None:
        side = config.data.image_size // config.model.patch_size
        apart = misalignment(output.aligned_BKF, batch.pixels_BCHW, side, batch.keep_BK)
        output = output._replace(auxiliary_loss=output.auxiliary_loss + config.train.repa_weight * apart)
    image_BKP, noise_BKP = (patchify(each, config.model.patch_size) for each in (batch.pixels_BCHW, batch.noise_BCHW))
    if batch.keep_BK is not None:
        image_BKP, noise_BKP = (gather_tokens(each, batch.keep_BK) for each in (image_BKP, noise_BKP))
    return objective.losses(output.velocity_BKP, image_BKP, noise_BKP, time_B), output


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
