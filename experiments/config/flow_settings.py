"""The settings of the objective of training: how noise is added, what the network predicts, how times are drawn."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from experiments.config.execution_settings import Settings, absent_at
from experiments.config.limits import DataStd, LogitMean, LogitStd, TimeShift


class FlowConfig(Settings):
    """Holds the objective of training. The rows of `objectives.py` say which settings each reads, with its defaults.

    EC-DIT states neither mean nor scale of the logit-normal t of rectified flow; the defaults are ours.
    """

    time_mean: LogitMean = Field(
        0.0,
        description="mean of the logit of t, which is ln(sigma/alpha); below 0, t is nearer to the image; edm: -1.2",
    )
    time_std: LogitStd = Field(1.0, description="standard deviation of the logit of t; edm: 1.2")
    objective: Literal["rectified_flow", "ddpm", "edm"] = Field(
        **absent_at("rectified_flow"), description="how noise is added, and what the loss compares"
    )
    prediction: Literal["velocity", "noise", "v", "x0"] = Field(
        **absent_at("velocity"),
        description="what the network predicts; ddpm: noise, v or x0; edm: x0; rectified_flow: velocity, or x0 (JiT)",
    )
    schedule: Literal["linear", "cosine"] | None = Field(
        **absent_at(None), description="ddpm only, linear there: how noise grows over the 1000 steps"
    )
    learned_sigma: bool = Field(
        **absent_at(False), description="ddpm only: a second half of the head predicts the variance of the reverse step"
    )
    data_std: DataStd | None = Field(
        **absent_at(None), description="edm only, 0.5 there: standard deviation of the data, for the preconditioning"
    )
    time_shift: TimeShift = Field(
        **absent_at(1.0),
        description="factor a of t' = a t / (1 + (a - 1) t), in training and sampling; above 1, nearer to noise",
    )

    @property
    def shifted_mean(self) -> float:
        """Returns the mean of the logit of t after the shift, which adds ln a to every logit."""
        return self.time_mean + math.log(self.time_shift)
