"""Moving averages of the weights, in fp32 over ZeRO's partitions.

Each process averages its own partition, so an average is sharded like the optimizer state. It is fp32 because in bf16
the small updates would be rounded away. There are two kinds (`train.ema`):

- `halflife`: one exponential average. Its half-life is in images and grows with the run until it reaches its setting,
  so that the average is not dominated by the initial weights (EDM2, arXiv 2312.02696, appendix C).
- `power`: averages of several widths whose weighting is a power of progress (EDM2, section 3). `power_profiles.py`
  defines them, and `reconstructed_average.py` makes averages of other widths from those of all checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from experiments.training.checkpoint_contents import average_keys
from experiments.training.partitions import Partitions
from experiments.training.power_profiles import exponent_of, share_of_new

RAMP_UP = 0.05
"""The half-life is at most this share of the images seen so far."""
CHUNK = 2**24
"""The number of elements that are swapped at once, which bounds the temporary copy."""


class MovingAverage:
    """The averages `average <- (1 - share) average + share weights`, updated after every step.

    `averages` has the flats of each average, laid out like the master weights. `keys` has what stands behind the name
    of a parameter in `ema.safetensors`: nothing for the first average, and the width for a further one. The first
    average, `flats`, is the one that is applied to the module. Its keys are those of `halflife`, so that whatever reads
    an average can read it.
    """

    def __init__(self, partitions: Partitions, halflife_images: float, widths: Sequence[float] = ()) -> None:
        """Begins with the weights as they are. `widths` are those of `power`; without them it is `halflife`."""
        self.partitions = partitions
        self.halflife_images = halflife_images
        self.widths = tuple(widths)
        self.keys = average_keys(widths)
        self._exponents = [exponent_of(width) for width in widths]
        self.averages: list[list[Tensor]] = [[flat.detach().clone() for flat in partitions.flats] for _ in self.keys]

    @property
    def flats(self) -> list[Tensor]:
        """Returns the flats of the average that is applied to the module."""
        return self.averages[0]

    @torch.no_grad()
    def update(self, images_seen: int, batch_images: int) -> None:
        """Updates the averages after a step of `batch_images` images, which ended at `images_seen`."""
        for flats, share in zip(self.averages, self._shares(images_seen, batch_images), strict=True):
            # One lerp reads and writes an average once. Scaling and adding in two steps would pass over memory twice.
            torch._foreach_lerp_(flats, self.partitions.flats, share)

    def _shares(self, images_seen: int, batch_images: int) -> list[float]:
        """Returns the share of the present weights in each average."""
        if self.widths:
            return [share_of_new(exponent, images_seen, batch_images) for exponent in self._exponents]
        # The weight of everything older halves every `halflife` images, whatever the batch size.
        halflife = max(min(self.halflife_images, images_seen * RAMP_UP), 1e-8)
        return [1 - 0.5 ** (batch_images / halflife)]

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
