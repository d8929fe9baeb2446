"""The data sets that are described without images: `imagenet` and `sd3`, on which published models learned.

No run trains on them. They let such models be planned, and imported weights of DiT and DiT-MoE be sampled: classes are
numbers, and latents are decoded by the VAE of Stable Diffusion.

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


class DescribedLatents:
    """Decodes latents of a model of such a data set, and has no images to train on."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    def check(self) -> NoReturn:
        """Raises `ConfigError`, because training needs images."""
        raise ConfigError(
            f"data.name={self.data.name} has no images: it describes what released weights were trained on.",
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

    def num_validation_images(self) -> NoReturn:
        """Raises `ConfigError`, as `check` does."""
        self.check()

    def validation_captions(self, numbers: range) -> NoReturn:
        """Raises `ConfigError`, as `check` does."""
        self.check()

    def null_caption(self, num: int) -> NoReturn:
        """Raises `ConfigError`, as `check` does."""
        self.check()

    def decoder(self, model: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Opens the VAE `model`. Raises `ConfigError` where none is named or it cannot be read."""
        if model is None:
            raise ConfigError(
                f"Samples of data.name={self.data.name} are latents, which a VAE decodes.",
                "Name it with --vae, for example a copy of stabilityai/sd-vae-ft-mse.",
            )
        return Autoencoder(find_encoder("vae", model)[1], device).decode
