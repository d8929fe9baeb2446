"""Exponential moving average of the weights, in fp32 over ZeRO's partitions.

Each process averages its own partition, so the average is sharded like the optimizer state. It is fp32 because in bf16
the small updates would be rounded away. The half-life is in images and grows with the run until it reaches its setting,
so that the average is not dominated by the initial weights (EDM2, arXiv 2312.02696, appendix C).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from experiments.training.partitions import Partitions

RAMP_UP = 0.05
"""The half-life is at most this share of the images seen so far."""
CHUNK = 2**24
"""The number of elements that are swapped at once, which bounds the temporary copy."""


class MovingAverage:
    """The moving average `average <- decay average + (1 - decay) weights`, updated after every step."""

    def __init__(self, partitions: Partitions, halflife_images: float) -> None:
        self.partitions = partitions
        self.halflife_images = halflife_images
        self.flats = [flat.detach().clone() for flat in partitions.flats]

    @torch.no_grad()
    def update(self, images_seen: int, batch_images: int) -> None:
        """Updates the average after a step of `batch_images` images, which ended at `images_seen`."""
        # The weight of everything older halves every `halflife` images, whatever the batch size.
        halflife = max(min(self.halflife_images, images_seen * RAMP_UP), 1e-8)
        # One lerp reads and writes every average once. Scaling and adding in two steps would pass over memory twice.
        torch._foreach_lerp_(self.flats, self.partitions.flats, 1 - 0.5 ** (batch_images / halflife))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the module within this context, and the trained weights back afterwards. Collective.

        No further copy is made. Where the module's own parameters are the only fp32 weights, weights and average are
        swapped; otherwise the module is refilled from the master weights.
        """
        if self.partitions.master_is_module:
            self._change_places()
        else:
            self.partitions.copy_to_module(self.flats)
        try:
            yield
        finally:
            # The trained weights come back after an error too, so that nothing later works with the average by mistake.
            if self.partitions.master_is_module:
                self._change_places()
            else:
                self.partitions.refresh_module()

    @torch.no_grad()
    def _change_places(self) -> None:
        # A swap in chunks needs no second copy of the weights, for which there may be no memory.
        self.partitions.let_go()
        for weights, average in zip(self.partitions.flats, self.flats, strict=True):
            for ours, other in zip(torch.split(weights.detach(), CHUNK), torch.split(average, CHUNK), strict=True):
                kept = ours.clone()
                ours.copy_(other)
                other.copy_(kept)
