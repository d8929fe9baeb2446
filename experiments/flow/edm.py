"""EDM: a preconditioned denoiser of images with noise of standard deviation sigma.

Karras et al. 2022, arXiv 2206.00364: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) with x = x_0 + sigma e, and the
loss c_out^-2 |D - x_0|^2, which is a plain squared error of F (equations 7 and 8, table 1). ln sigma is normal, so that
t = sigma / (1 + sigma) is logit-normal with the same mean and scale. The formulas below are those of table 1 with
x_t = x / (1 + sigma).

c_noise = ln(sigma) / 4 is mapped from `LEAST_SIGMA` and `LARGEST_SIGMA` to 0 and 1, so that routers and the embedding
of time see the range that they see with other objectives. The map is affine, so that the network loses nothing.
"""

from __future__ import annotations

import math

from torch import Tensor

from experiments.config.objectives import LARGEST_SIGMA, LEAST_SIGMA
from experiments.flow.objective_contract import Objective, spread

RHO = 7.0
"""The exponent of the grid of noise levels (table 1)."""


class Edm(Objective):
    """Predicts F of the preconditioned denoiser."""

    def network_input(self, x_BCHW: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns c_in x and the mapped c_noise."""
        span = math.log(LARGEST_SIGMA / LEAST_SIGMA)
        place_B = (time_B.logit() - math.log(LEAST_SIGMA)) / span
        return x_BCHW / spread(self._norm(time_B), x_BCHW), place_B.clamp(0, 1)

    def target(self, image: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Returns (x_0 - c_skip x) / c_out, which has variance 1 where the image's is `data_std`^2."""
        time, std = spread(time_B, image), self.data_std
        return (time * image - std**2 * (1 - time) * noise) / (std * spread(self._norm(time_B), image))

    def velocity_terms(self, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the terms of v = (x_t - D) / t, in which t is cancelled."""
        std, norm_B = self.data_std, self._norm(time_B)
        return (time_B - std**2 * (1 - time_B)) / norm_B.square(), -std / norm_B

    def grid(self, num_steps: int, shift: float) -> list[float]:
        """Returns the times of N levels sigma that are evenly spaced as sigma^(1/rho) (equation 5), and 0."""
        largest, least = LARGEST_SIGMA ** (1 / RHO), LEAST_SIGMA ** (1 / RHO)
        sigmas = [(largest + step / max(1, num_steps - 1) * (least - largest)) ** RHO for step in range(num_steps)]
        return [*(sigma / (1 + sigma) for sigma in sigmas), 0.0]

    @property
    def data_std(self) -> float:
        """Returns the standard deviation of the data, sigma_data in the paper."""
        assert self.flow.data_std is not None
        return self.flow.data_std

    def _norm(self, time_B: Tensor) -> Tensor:
        """Returns the standard deviation of x_t."""
        return (time_B.square() + (self.data_std * (1 - time_B)).square()).sqrt()
