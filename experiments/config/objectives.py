"""Lists every objective of training in one table: its label, its source, and the settings of `flow` that it reads.

An objective is one row of `OBJECTIVES` and one file of `experiments/flow/`, whose class the row names. The row is free
of torch, because planning reads it: defaults, checks, and the width of the head follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from experiments.errors import ConfigError

if TYPE_CHECKING:
    from experiments.config.flow_settings import FlowConfig
    from experiments.config.schema import RunConfig

RECTIFIED_FLOW = "rectified_flow"
NOISE_STEPS = 1000
"""The steps of noise of DDPM."""
LEAST_SIGMA, LARGEST_SIGMA = 0.002, 80.0
"""The ends of the noise levels of EDM (Karras et al. 2022, table 1)."""


@dataclass(frozen=True)
class ObjectiveRow:
    """Describes one objective."""

    name: str
    label: str
    """The name in tables and messages."""
    source: str
    """The papers that the objective is from."""
    implementation: str
    """The subclass of `Objective` as "module:Class", which is imported only when a model is trained or sampled from."""
    predictions: tuple[str, ...]
    """The values of `flow.prediction`, which say what the network predicts; the first is the default."""
    mean_time: Callable[[FlowConfig], float]
    """The mean over training of the time that the network reads, by which routers scale a capacity that follows it."""
    most_steps: int | None = None
    """The most steps of a sampler, where the network knows only so many noise levels."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The other settings of `flow` that the objective reads, with their defaults."""

    @property
    def defaults(self) -> dict[str, Any]:
        """Returns the default of every setting of `flow` that this objective reads."""
        return {"prediction": self.predictions[0], **self.settings}


@lru_cache(maxsize=64)
def _mean_of_sigmoid(mean: float, std: float) -> float:
    """Returns the mean of 1 / (1 + exp(-x)) over a normal x, by the trapezoidal rule over eight deviations."""
    num_steps = 2000
    places = [8 * (2 * step / num_steps - 1) for step in range(num_steps + 1)]
    weights = [math.exp(-place * place / 2) for place in places]
    values = [0.5 * (1 + math.tanh((mean + std * place) / 2)) for place in places]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


OBJECTIVES: dict[str, ObjectiveRow] = {
    row.name: row
    for row in (
        ObjectiveRow(
            RECTIFIED_FLOW, "Rectified flow",
            "Liu et al. 2022 (arXiv 2209.03003); x0 prediction: Li and He 2025 (JiT, arXiv 2511.13720)",
            "experiments.flow.rectified_flow:RectifiedFlow",
            predictions=("velocity", "x0"), mean_time=lambda flow: _mean_of_sigmoid(flow.shifted_mean, flow.time_std),
            settings={"time_mean": 0.0, "time_std": 1.0, "time_shift": 1.0},
        ),
        ObjectiveRow(
            "ddpm", "DDPM",
            "Ho et al. 2020 (arXiv 2006.11239); v prediction: Salimans and Ho 2022 (arXiv 2202.00512); learned sigma "
            "and the cosine schedule: Nichol and Dhariwal 2021 (arXiv 2102.09672)",
            "experiments.flow.ddpm:Ddpm",
            predictions=("noise", "v", "x0"), mean_time=lambda flow: (NOISE_STEPS - 1) / 2 / NOISE_STEPS,
            most_steps=NOISE_STEPS,
            settings={"schedule": "linear", "learned_sigma": False},
        ),
        ObjectiveRow(
            "edm", "EDM", "Karras et al. 2022 (arXiv 2206.00364)",
            "experiments.flow.edm:Edm",
            predictions=("x0",),
            mean_time=lambda flow: (flow.time_mean - math.log(LEAST_SIGMA)) / math.log(LARGEST_SIGMA / LEAST_SIGMA),
            settings={"time_mean": -1.2, "time_std": 1.2, "data_std": 0.5},
        ),
    )
}  # fmt: skip


def with_objective(flow: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of `flow`, where those of the objective that were left open have their defaults."""
    row = OBJECTIVES.get(flow.get("objective", RECTIFIED_FLOW))
    defaults = row.defaults if row is not None else {}
    return {**flow, **{key: value for key, value in defaults.items() if flow.get(key) is None}}


def check_objective(config: RunConfig) -> None:
    """Raises `ConfigError` for a prediction that the objective does not have, or a setting that it does not read."""
    flow, row = config.flow, OBJECTIVES[config.flow.objective]
    if flow.prediction not in row.predictions:
        raise ConfigError(
            f"flow.prediction={flow.prediction} does not fit flow.objective={row.name}, with which the network "
            f"predicts {' or '.join(row.predictions)}.",
            f"Use flow.prediction={row.predictions[0]}, or leave it out.",
        )
    if flow.learned_sigma and config.model.learn_sigma is False:
        raise ConfigError(
            "flow.learned_sigma=True does not fit model.learn_sigma=False, which leaves the head no outputs for it.",
            "Leave model.learn_sigma out.",
        )
    for key, leaf in type(flow).model_fields.items():
        value = getattr(flow, key)
        if key not in ("objective", *row.defaults) and value != leaf.default:
            readers = " or ".join(
                f"flow.objective={other.name}" for other in OBJECTIVES.values() if key in other.defaults
            )
            raise ConfigError(
                f"flow.{key}={value} does not fit flow.objective={row.name}, which does not read it.",
                f"Leave it out, or use {readers}.",
            )


def loss_is_velocity_error(objective: str, prediction: str) -> bool:
    """Says whether the loss of training is itself the velocity error, the measure that all objectives share."""
    return (objective, prediction) == (RECTIFIED_FLOW, "velocity")
