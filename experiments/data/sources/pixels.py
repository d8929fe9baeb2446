"""Reads the pixels of a prepared data set, bytes that become numbers in [-1, 1]; the model sees the images themselves.

Where the data set asks for it, training mirrors an image in half of the epochs, unless its text names a side.

Legend: B images of a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from experiments.config.prepared_set import SetSplit
from experiments.data.counter import Stream, uniforms
from experiments.data.sources.mapped_shards import Found
from experiments.data.sources.prepared import PreparedImages
from experiments.errors import ConfigError


class Pixels(PreparedImages):
    """Provides images whose samples need no decoder."""

    def images(self, found: Sequence[Found], images: range, split: SetSplit) -> Tensor:
        """Returns pixels in [-1, 1], float32 [B, C, H, W]."""
        bytes_BCHW = torch.stack([shard.tensor("pixels_NCHW")[inside] for shard, inside in found])
        if self.index.flips and split == "train":
            allowed_B = torch.stack([shard.tensor("flips_N")[inside] for shard, inside in found])
            drawn = uniforms(self.data.seed, Stream.TRAIN_FLIP, images, 1)[:, 0] < 0.5
            flipped_B = torch.from_numpy(drawn) & allowed_B
            bytes_BCHW[flipped_B] = bytes_BCHW[flipped_B].flip(-1)
        return bytes_BCHW.float().div_(127.5).sub_(1)

    def stored(self, split: SetSplit, numbers: Sequence[int]) -> Tensor:
        """Returns images of a split by their numbers in it, as they are stored: float32 [B, C, H, W] in [-1, 1]."""
        found = self._found(split, numbers)
        bytes_BCHW = torch.stack([shard.tensor("pixels_NCHW")[inside] for shard, inside in found])
        return bytes_BCHW.float().div_(127.5).sub_(1)

    def may_be_mirrored(self, split: SetSplit, numbers: Sequence[int]) -> Tensor:
        """Returns for each of these images whether training mirrors it at random, bool [B]."""
        if not self.index.flips:
            return torch.zeros(len(numbers), dtype=torch.bool)
        return torch.stack([shard.tensor("flips_N")[inside] for shard, inside in self._found(split, numbers)])

    def decoder(self, model: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Returns what brings samples to the CPU, in [-1, 1]. Raises `ConfigError` where a VAE is named."""
        if model is not None:
            raise ConfigError(f"--vae {model} does not fit a run on pixels, which nothing decodes.", "Leave out --vae.")
        return lambda image_BCHW: image_BCHW.float().clamp(-1, 1).cpu()
