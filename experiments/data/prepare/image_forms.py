"""The forms in which images are stored, latents of a VAE or their pixels, and how images are brought to size for each.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from experiments.data.prepare.encoders import Autoencoder
from experiments.data.prepare.encoding import Sizing
from experiments.data.prepare.request import Request


@dataclass(frozen=True)
class LatentImages:
    """Stores the posteriors of a VAE."""

    vae: Autoencoder

    def encode(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Returns means and standard deviations, float16 [B, C, H, W]."""
        mean_BCHW, std_BCHW = self.vae.encode(pixels_BCHW)
        return {"latent_mean_NCHW": mean_BCHW, "latent_std_NCHW": std_BCHW}


class PixelImages:
    """Stores images as they are, a byte for each value."""

    def encode(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Returns the bytes from which the pixels were made, uint8 [B, 3, H, W]."""
        return {"pixels_NCHW": ((pixels_BCHW + 1) * 127.5).round().to(torch.uint8)}


def sizing_of(request: Request) -> Sizing:
    """Returns how images are brought to size: for latents as is usual for ImageNet, pixels by the mean over areas.

    The mean over the area of each pixel neither rings nor blurs, which shows where drawings become very small.
    """
    kernel = Image.Resampling.BOX if request.vae is None else Image.Resampling.BICUBIC
    return Sizing(request.image_size, request.background, kernel)
