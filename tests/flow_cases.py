"""The objectives of the registry with every prediction and schedule, and the exact answers for Gaussian images."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.config.flow_settings import FlowConfig
from experiments.config.objectives import OBJECTIVES, with_objective
from experiments.flow.objective_contract import Objective, Predicted, interpolate, objective_of, spread

CASES = [
    {"objective": row.name, "prediction": prediction, **more}
    for row in OBJECTIVES.values()
    for prediction, more in itertools.product(
        row.predictions, [{"schedule": "linear"}, {"schedule": "cosine"}] if "schedule" in row.settings else [{}]
    )
]
LEARNED = {"objective": "ddpm", "learned_sigma": True}


def named(case: dict[str, object]) -> str:
    return " ".join(map(str, case.values()))


def objective(case: dict[str, object]) -> Objective:
    return objective_of(FlowConfig(**with_objective(case)))


@dataclass(frozen=True)
class Gaussian:
    """Images whose pixels are independent and normal, for which everything is known in closed form."""

    mean: float = 0.3
    std: float = 0.5

    def images(self, shape: tuple[int, ...], seed: int = 1) -> Tensor:
        return self.mean + self.std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def velocity(self, x: Tensor, time_B: Tensor) -> Tensor:
        """The mean of e - x_0 given x_t."""
        time = spread(time_B.to(x.dtype), x)
        slope = (time - (1 - time) * self.std**2) / self.variance(time)
        return slope * (x - (1 - time) * self.mean) - self.mean

    def variance(self, time: Tensor) -> Tensor:
        return time**2 + ((1 - time) * self.std) ** 2

    def velocity_variance(self, time_B: Tensor) -> Tensor:
        """The variance of e - x_0 given x_t, below which no velocity error can fall."""
        return self.std**2 / self.variance(time_B)

    def field(self, x: Tensor, time_B: Tensor) -> Predicted:
        return Predicted(self.velocity(x, time_B))

    def output(self, of: Objective, x: Tensor, time_B: Tensor) -> Tensor:
        """What a network that knows the images would predict."""
        a_B, k_B = of.velocity_terms(time_B)
        return (self.velocity(x, time_B) - spread(a_B, x) * x) / spread(k_B, x)


def noisy(image: Tensor, time_B: Tensor, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Noise and x_t."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return noise, interpolate(image, noise, time_B)
