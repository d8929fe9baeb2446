"""The contract of an objective: how noise is added, what the network reads and predicts, and what is minimised.

Every objective here mixes an image x_0 with Gaussian noise e as x_t = alpha_t x_0 + sigma_t e, and they differ in
scale: the straight path of rectified flow has alpha + sigma = 1, DDPM has alpha^2 + sigma^2 = 1, and EDM has alpha = 1.
Noisy images of equal signal-to-noise ratio are multiples of each other. This project therefore keeps a noisy image on
the straight path, x_t = (1 - t) x_0 + t e, and one time t for all objectives: t = sigma / (alpha + sigma), so that
logit t = ln(sigma / alpha). An objective says how to scale x_t and t for its network, and how the network's prediction
gives the velocity of the straight path, v = e - x_0. All samplers follow from that velocity, and so does the measure
that objectives share: the mean squared error of the implied velocity.

Every prediction is affine in x_t, so that v = a_t x_t + k_t (prediction), and an error of the prediction is multiplied
by k_t on its way to the velocity.

Legend: B images, C channels, H, W height and width, K tokens, P values of a token.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.config.flow_settings import FlowConfig
from experiments.config.objectives import OBJECTIVES


class Losses(NamedTuple):
    """The losses of a batch, float32 [B] each.

    `loss_B` is minimised. `velocity_error_B` is the mean squared error of the velocity that the prediction implies.
    """

    loss_B: Tensor
    velocity_error_B: Tensor


class Predicted(NamedTuple):
    """The prediction of the network for noisy images.

    `variance_BCHW` is the learned place of the reverse step's log variance between its bounds, from -1 to 1, or None.
    """

    velocity_BCHW: Tensor
    variance_BCHW: Tensor | None = None


class Objective(ABC):
    """The base class of objectives: the times that are drawn, the scales of the network, its target and the loss."""

    is_straight = False
    """Says whether Heun's method integrates over t along the straight path. Otherwise it integrates over sigma / alpha,
    as EDM's does (Karras et al. 2022, algorithm 1)."""
    evaluates_image = False
    """Says whether the velocity is evaluated at t = 0 too. Otherwise the last step of Heun's method is Euler's."""

    def __init__(self, flow: FlowConfig) -> None:
        self.flow = flow

    def draw_times(self, quantile_B: Tensor) -> Tensor:
        """Returns the times of training images, float32, from uniform numbers in float64; by default logit-normal."""
        return logit_normal(quantile_B, self.flow.shifted_mean, self.flow.time_std)

    @abstractmethod
    def network_input(self, x_BCHW: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the network reads: the scaled noisy images, and a time in [0, 1] that it embeds."""

    @abstractmethod
    def target(self, image: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Returns what the network should predict, in the shape of `image`."""

    @abstractmethod
    def velocity_terms(self, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a and k of v = a x_t + k (prediction), [B] each."""

    @abstractmethod
    def grid(self, num_steps: int, shift: float) -> list[float]:
        """Returns the N + 1 falling times of a sampler, of which the last is 0."""

    def losses(self, predicted_BKP: Tensor, image_BKP: Tensor, noise_BKP: Tensor, time_B: Tensor) -> Losses:
        """Returns the losses over the kept tokens, of which the network predicted `predicted_BKP`."""
        error_B = squared_error(predicted_BKP, self.target(image_BKP, noise_BKP, time_B))
        return Losses(error_B, self.velocity_error(error_B, time_B))

    def velocity_error(self, error_B: Tensor, time_B: Tensor) -> Tensor:
        """Returns the velocity error of each image whose prediction has the mean squared error `error_B`."""
        _, k_B = self.velocity_terms(time_B)
        return error_B.detach() * k_B.square()

    def predicted(self, output_BCHW: Tensor, x_BCHW: Tensor, time_B: Tensor) -> Predicted:
        """Returns the velocity that the network's output at x_t implies."""
        a_B, k_B = self.velocity_terms(time_B)
        return Predicted(spread(a_B, x_BCHW) * x_BCHW + spread(k_B, x_BCHW) * output_BCHW)


@lru_cache(maxsize=16)
def objective_of(flow: FlowConfig) -> Objective:
    """Returns the objective that the settings name."""
    found: type[Objective] = pkgutil.resolve_name(OBJECTIVES[flow.objective].implementation)
    return found(flow)


def interpolate(image_BCHW: Tensor, noise_BCHW: Tensor, time_B: Tensor) -> Tensor:
    """Returns x_t of the straight path, which is the image at t = 0 and the noise at t = 1."""
    time_B111 = spread(time_B, image_BCHW)
    return (1 - time_B111) * image_BCHW + time_B111 * noise_BCHW


def squared_error(predicted_BKP: Tensor, target_BKP: Tensor) -> Tensor:
    """Returns the mean squared error of each image, float32 [B], over the kept tokens where tokens were masked."""
    return (predicted_BKP.float() - target_BKP.float()).square().mean(dim=(1, 2))


def logit_normal(quantile_B: Tensor, mean: float, std: float) -> Tensor:
    """Returns t = sigmoid(mean + std z) at given quantiles, in float32; a wide std must not round it to 0 or 1.

    On every path, ln(sigma / alpha) is then normal with this mean and standard deviation.
    """
    edge = torch.finfo(torch.float32).eps
    return torch.sigmoid(mean + std * torch.special.ndtri(quantile_B)).to(torch.float32).clamp(edge, 1 - edge)


def spread(values_B: Tensor, like: Tensor) -> Tensor:
    """Returns `values_B` with as many dimensions as `like`, so that every image is multiplied by its own value."""
    return values_B.view(-1, *[1] * (like.ndim - 1))
