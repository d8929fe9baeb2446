"""Exponential moving average of the weights, in fp32 over ZeRO's partitions.

Each process averages its own share, so the average is sharded like the optimizer state, and bf16 training does not
round it away. The half-life is in images and grows with the run until it reaches its setting, so that the average is
not dominated by the initial weights (EDM2, arXiv 2312.02696, appendix C).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from experiments.training.partitions import FlatPartitions

RAMP_UP = 0.05
"""The half-life is at most this share of the images seen so far."""


class MovingAverage:
    """`average <- decay average + (1 - decay) weights` after every step."""

    def __init__(self, partitions: FlatPartitions, halflife_images: float) -> None:
        self.partitions = partitions
        self.halflife_images = halflife_images
        self.flats = [flat.detach().clone() for flat in partitions.flats]

    @torch.no_grad()
    def update(self, images_seen: int, batch_images: int) -> None:
        """After a step of `batch_images` images that ended at `images_seen`."""
        halflife = max(min(self.halflife_images, images_seen * RAMP_UP), 1e-8)
        torch._foreach_lerp_(self.flats, self.partitions.flats, 1 - 0.5 ** (batch_images / halflife))

    def load(self, full: Mapping[str, Tensor]) -> None:
        """Take this process's share of `full`."""
        self.partitions.scatter(full, self.flats)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the average inside, and the trained weights again outside. Collective."""
        self.partitions.copy_to_module(self.flats)
        try:
            yield
        finally:
            self.partitions.refresh_module()
