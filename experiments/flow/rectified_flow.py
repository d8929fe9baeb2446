"""Rectified flow: straight lines from data to noise.

x_t = (1 - t) x_0 + t x_1 with x_0 an image and x_1 standard normal noise; the network learns the velocity x_1 - x_0
with a mean squared error (EC-DIT section 3; Liu et al. 2022, arXiv 2209.03003; t drawn logit-normal as in SD3, arXiv
2403.03206, by the data loader).

Legend: B images, C channels, H, W height and width, K tokens, P values of a token.
"""

from __future__ import annotations

from torch import Tensor


def interpolate(image_BCHW: Tensor, noise_BCHW: Tensor, time_B: Tensor) -> Tensor:
    """Returns x_t, which is the image at t = 0 and the noise at t = 1."""
    time_B111 = time_B.view(-1, 1, 1, 1)
    return (1 - time_B111) * image_BCHW + time_B111 * noise_BCHW


def velocity_target(image_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """Returns dx_t / dt, which is the same for every t."""
    return noise_BCHW - image_BCHW


def velocity_loss(predicted_BKP: Tensor, target_BKP: Tensor) -> Tensor:
    """Returns the mean squared error of each image, float32 [B], over the kept tokens where tokens were masked."""
    return (predicted_BKP.float() - target_BKP.float()).square().mean(dim=(1, 2))
