"""DDPM: 1000 steps of noise with a linear or a cosine schedule, and a network that predicts noise, v or the image.

x_n = alpha_n x_0 + sigma_n e with alpha^2 + sigma^2 = 1 and alpha_n^2 = the product of 1 - beta_i up to step n (Ho et
al. 2020, arXiv 2006.11239; the cosine schedule: Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17). Steps are
drawn uniformly, and the network is given n as in the public code of DiT (facebookresearch/DiT, `diffusion/`): its
embedding of time multiplies n / 1000 by 1000. At other noise levels it is given the nearest step.

With `flow.learned_sigma` the head has a second half, which places the log variance of the reverse step between its
bounds. It learns from the variational bound, whose gradient does not reach the mean (section 3.1 there), with the
weight of DiT's code: the bound of one step, in bits per dimension, is added to the squared error.

Legend: B images, C channels, H, W height and width, K tokens, P values of a token, N noise steps.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.config.objectives import NOISE_STEPS
from experiments.flow.objective_contract import Losses, Objective, Predicted, spread, squared_error

FIRST_BETA, LAST_BETA, LARGEST_BETA = 1e-4, 0.02, 0.999
COSINE_OFFSET = 0.008
HALF_PIXEL, LAST_PIXEL = 1 / 255, 0.999
"""Half the distance of two of the 256 values of a pixel in [-1, 1], and where the first and the last value lie."""

Floats = NDArray[np.float64]


class NoiseSchedule(NamedTuple):
    """The numbers of a schedule at its steps, float64 [N] each."""

    time_N: Floats
    """The time t = sigma / (alpha + sigma), which rises with the step."""
    log_beta_N: Floats
    """The upper bound of the reverse step's log variance."""
    log_posterior_N: Floats
    """The lower bound, log of beta (1 - alpha_bar before) / (1 - alpha_bar); at the first step that of the second."""
    image_weight_N: Floats
    """The weight of x_0 in the mean of the reverse step."""


@lru_cache(maxsize=2)
def noise_schedule(name: str) -> NoiseSchedule:
    """Returns the table of the schedule `linear` or `cosine`."""
    if name == "linear":
        beta_N = np.linspace(FIRST_BETA, LAST_BETA, NOISE_STEPS)
    else:
        angle = (np.arange(NOISE_STEPS + 1) / NOISE_STEPS + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2
        level = np.cos(angle) ** 2
        beta_N = np.minimum(1 - level[1:] / level[:-1], LARGEST_BETA)
    left_N = np.cumprod(1 - beta_N)
    before_N = np.append(1.0, left_N[:-1])
    alpha_N, sigma_N = np.sqrt(left_N), np.sqrt(1 - left_N)
    posterior_N = beta_N * (1 - before_N) / (1 - left_N)
    posterior_N[0] = posterior_N[1]  # that of the first step is 0, which has no logarithm
    return NoiseSchedule(
        sigma_N / (alpha_N + sigma_N), np.log(beta_N), np.log(posterior_N), beta_N * np.sqrt(before_N) / (1 - left_N)
    )


class Ddpm(Objective):
    """Predicts the noise, v = alpha e - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512), or the image."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Returns the table of the schedule."""
        assert self.flow.schedule is not None
        return noise_schedule(self.flow.schedule)

    def draw_times(self, quantile_B: Tensor) -> Tensor:
        """Returns the times of steps that are drawn uniformly."""
        step_B = (quantile_B * NOISE_STEPS).long().clamp(max=NOISE_STEPS - 1)
        return _at(self.schedule.time_N, step_B)

    def network_input(self, x_BCHW: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the image with alpha^2 + sigma^2 = 1, and n / 1000."""
        return x_BCHW / spread(_norm(time_B), x_BCHW), self.nearest_step(time_B).float() / NOISE_STEPS

    def nearest_step(self, time_B: Tensor) -> Tensor:
        """Returns the step whose ln(sigma / alpha) is nearest, int64 [B]."""
        logit_N = np.log(self.schedule.time_N) - np.log1p(-self.schedule.time_N)
        middle = 1 / (1 + np.exp(-(logit_N[1:] + logit_N[:-1]) / 2))
        return torch.bucketize(time_B.double(), torch.from_numpy(middle).to(time_B.device))

    def target(self, image: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Returns the noise, v or the image."""
        if self.flow.prediction == "v":
            time = spread(time_B, image)
            return ((1 - time) * noise - time * image) / spread(_norm(time_B), image)
        return noise if self.flow.prediction == "noise" else image

    def velocity_terms(self, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the terms of v = (e - x_t) / (1 - t), of v = (x_t - x_0) / t, or those of v prediction."""
        if self.flow.prediction == "noise":
            return -1 / (1 - time_B), 1 / (1 - time_B)
        if self.flow.prediction == "x0":
            return 1 / time_B, -1 / time_B
        norm_B = _norm(time_B)
        return (2 * time_B - 1) / norm_B.square(), 1 / norm_B

    def losses(self, predicted_BKP: Tensor, image_BKP: Tensor, noise_BKP: Tensor, time_B: Tensor) -> Losses:
        """Returns the squared error of the prediction, plus the bound of the learned variance where there is one."""
        if not self.flow.learned_sigma:
            return super().losses(predicted_BKP, image_BKP, noise_BKP, time_B)
        # The head's outputs are in the order of channels, so that the first half is the prediction.
        mean_BKP, variance_BKP = predicted_BKP.float().chunk(2, dim=-1)
        target_BKP = self.target(image_BKP, noise_BKP, time_B)
        error_B = squared_error(mean_BKP, target_BKP)
        _, k_B = self.velocity_terms(time_B)
        off_BKP = spread(time_B * k_B, image_BKP) * (target_BKP - mean_BKP.detach())  # predicted image - image
        bound_B = self.variance_bound(variance_BKP, off_BKP, image_BKP, time_B)
        return Losses(error_B + bound_B, self.velocity_error(error_B, time_B))

    def variance_bound(self, variance_BKP: Tensor, off_BKP: Tensor, image_BKP: Tensor, time_B: Tensor) -> Tensor:
        """Returns the term of the variational bound at each image's step, in bits per dimension, float32 [B].

        `off_BKP` is the error of the predicted image. It is the divergence of the reverse step from the true posterior,
        and at the first step the negative log likelihood of pixels of 256 values.
        """
        table, step_B = self.schedule, self.nearest_step(time_B)
        low_B, high_B, weight_B = (
            spread(_at(values, step_B), image_BKP)
            for values in (table.log_posterior_N, table.log_beta_N, table.image_weight_N)
        )
        log_variance = torch.lerp(low_B, high_B, (variance_BKP + 1) / 2)
        gap = (weight_B * off_BKP).square() * torch.exp(-log_variance)
        divergence_B = 0.5 * (log_variance - low_B - 1 + torch.exp(low_B - log_variance) + gap).mean(dim=(1, 2))
        likelihood_B = _pixel_log_likelihood(image_BKP, -off_BKP, 0.5 * log_variance).mean(dim=(1, 2))
        return torch.where(step_B == 0, -likelihood_B, divergence_B) / math.log(2)

    def predicted(self, output_BCHW: Tensor, x_BCHW: Tensor, time_B: Tensor) -> Predicted:
        """Returns the implied velocity and the learned variance where there is one."""
        if not self.flow.learned_sigma:
            return super().predicted(output_BCHW, x_BCHW, time_B)
        mean_BCHW, variance_BCHW = output_BCHW.chunk(2, dim=1)
        return super().predicted(mean_BCHW, x_BCHW, time_B)._replace(variance_BCHW=variance_BCHW)

    def grid(self, num_steps: int, shift: float) -> list[float]:
        """Returns the times of evenly spaced steps from the last to the first, as in DiT's public code, and 0."""
        steps = np.linspace(NOISE_STEPS - 1, 0, num_steps).round().astype(int)
        return [*self.schedule.time_N[steps].tolist(), 0.0]


def _norm(time_B: Tensor) -> Tensor:
    """Returns the root of alpha^2 + sigma^2 on the straight path."""
    return (time_B.square() + (1 - time_B).square()).sqrt()


def _at(values_N: Floats, step_B: Tensor) -> Tensor:
    return torch.from_numpy(values_N).float().to(step_B.device)[step_B]


def _pixel_log_likelihood(image: Tensor, centred: Tensor, log_std: Tensor) -> Tensor:
    """Returns the log probability of pixels of 256 values under normals; `centred` is the pixel minus the mean."""
    upper, lower = (_normal_cdf((centred + side) * torch.exp(-log_std)) for side in (HALF_PIXEL, -HALF_PIXEL))
    inside = torch.where(image < -LAST_PIXEL, upper, torch.where(image > LAST_PIXEL, 1 - lower, upper - lower))
    return inside.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Returns the approximation by tanh with which the public code of DiT computes it."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
