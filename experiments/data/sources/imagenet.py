"""The data set `imagenet`: latents of ImageNet's 1,000 classes, on which the public weights of DiT and DiT-MoE learned.

There are no images here, so that no run trains on it. It lets such models be planned, and imported weights be sampled:
classes are numbers, and latents are decoded by the VAE of Stable Diffusion.

Legend: B images of a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from experiments.config.schema import DataConfig
from experiments.data.prepare.encoders import Autoencoder, find_encoder
from experiments.errors import ConfigError


class ImageNetLatents:
    """Decodes latents of a model of ImageNet's classes, and has no images to train on."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    def check(self) -> NoReturn:
        """Raises `ConfigError`, because training needs images."""
        raise ConfigError(
            "data.name=imagenet has no images: it describes what released weights were trained on.",
            "Prepare images of your own with `ecdit data prepare`, or use data.name=shapes.",
        )

    def training(self, images: range, dropped_B: Tensor) -> NoReturn:
        """Raises `ConfigError`, as `check` does."""
        self.check()

    def validation(self, images: range) -> NoReturn:
        """Raises `ConfigError`, as `check` does."""
        self.check()

    def parts(self, num_images: int) -> Mapping[str, Callable[[int], object]]:
        """Raises `ConfigError`, as `check` does."""
        self.check()

    def decoder(self, model: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Opens the VAE `model`. Raises `ConfigError` where none is named or it cannot be read."""
        if model is None:
            raise ConfigError(
                "Samples of data.name=imagenet are latents, which a VAE decodes.",
                "Name it with --vae, for example a copy of stabilityai/sd-vae-ft-mse.",
            )
        return Autoencoder(find_encoder("vae", model)[1], device).decode
