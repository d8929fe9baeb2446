"""Rectified flow: straight lines from data to noise.

x_t = (1 - t) x_0 + t x_1 with x_0 an image and x_1 standard normal noise; the network learns the velocity x_1 - x_0
with a mean squared error (EC-DIT section 3; Liu et al. 2022, arXiv 2209.03003; t drawn logit-normal as in SD3, arXiv
2403.03206). With `flow.prediction=x0` the network predicts the image, which lies near a surface of few dimensions,
while the loss stays that of the velocity (Li and He 2025, JiT, arXiv 2511.13720, table 1, whose t is 1 - t here).
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config.flow_settings import FlowConfig
from experiments.flow.objective_contract import Losses, Objective, Predicted, spread, squared_error

LEAST_TIME = 0.05
"""The least t by which the loss of an x0 prediction divides, which bounds the weight near the image (JiT)."""


class RectifiedFlow(Objective):
    """Predicts the velocity of the straight path, or the image at its end."""

    is_straight = True

    def __init__(self, flow: FlowConfig) -> None:
        super().__init__(flow)
        self.evaluates_image = flow.prediction == "velocity"  # the velocity of a predicted image divides by t

    def network_input(self, x_BCHW: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both as they are."""
        return x_BCHW, time_B

    def target(self, image: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Returns dx_t / dt, which is the same for every t, or the image."""
        return noise - image if self.flow.prediction == "velocity" else image

    def velocity_terms(self, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the prediction itself as the velocity, or v = (x_t - x_0) / t."""
        if self.flow.prediction == "velocity":
            return torch.zeros_like(time_B), torch.ones_like(time_B)
        return 1 / time_B, -1 / time_B

    def losses(self, predicted_BKP: Tensor, image_BKP: Tensor, noise_BKP: Tensor, time_B: Tensor) -> Losses:
        """Returns the velocity error, which is the loss too, but for the least t of an x0 prediction."""
        error_B = squared_error(predicted_BKP, self.target(image_BKP, noise_BKP, time_B))
        if self.flow.prediction == "velocity":
            return Losses(error_B, error_B.detach())
        return Losses(error_B / time_B.clamp(min=LEAST_TIME).square(), self.velocity_error(error_B, time_B))

    def predicted(self, output_BCHW: Tensor, x_BCHW: Tensor, time_B: Tensor) -> Predicted:
        """Returns the predicted velocity, or that of the predicted image."""
        if self.flow.prediction == "velocity":
            return Predicted(output_BCHW)
        return Predicted((x_BCHW - output_BCHW) / spread(time_B, x_BCHW))

    def grid(self, num_steps: int, shift: float) -> list[float]:
        """Returns even times from 1 to 0; `shift` > 1 spends more of the steps near noise (SD3, equation 23)."""
        even = [1 - step / num_steps for step in range(num_steps + 1)]
        return [shift * t / (1 + (shift - 1) * t) for t in even]
