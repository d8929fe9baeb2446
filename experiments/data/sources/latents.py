"""Reads the latents of a prepared data set: an image is drawn anew from its posterior in every epoch.

Legend: B images of a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from experiments.config.prepared_set import SetSplit
from experiments.data.counter import Stream, normals
from experiments.data.prepare.encoders import Autoencoder, find_encoder
from experiments.data.sources.mapped_shards import Found
from experiments.data.sources.prepared import PreparedImages
from experiments.errors import ConfigError


class Latents(PreparedImages):
    """Provides latents, which the VAE of the data set decodes."""

    def images(self, found: Sequence[Found], images: range, split: SetSplit) -> Tensor:
        """Returns latents drawn from their posteriors, shifted and scaled, as float32 [B, C, H, W]."""
        data, index = self.data, self.index
        assert index.shift_factor is not None
        assert index.scaling_factor is not None
        stream = Stream.TRAIN_LATENT if split == "train" else Stream.VALIDATION_LATENT
        noise = normals(data.seed, stream, images, data.channels * data.image_size**2)
        latent_BCHW = torch.from_numpy(noise).view(len(images), data.channels, data.image_size, data.image_size)
        latent_BCHW.mul_(torch.stack([shard.tensor("latent_std_NCHW")[inside] for shard, inside in found]))
        latent_BCHW.add_(torch.stack([shard.tensor("latent_mean_NCHW")[inside] for shard, inside in found]))
        return latent_BCHW.sub_(index.shift_factor).mul_(index.scaling_factor)

    def decoder(self, model: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Opens the VAE that made the latents. Raises `ConfigError` where it is missing or a different one."""
        vae = self.index.vae
        assert vae is not None
        entry, folder = find_encoder("vae", model or vae.path)
        if entry.sha256 != vae.sha256:
            raise ConfigError(f"--vae {entry.path} is not the VAE that made the data set.", "Name that one with --vae.")
        return Autoencoder(folder, device).decode
