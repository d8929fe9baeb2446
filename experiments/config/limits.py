"""Defines the least and the greatest value of every numeric setting, and the types that enforce them.

A number outside the limits is a typing error or an attack. The limits lie well above anything that has been trained, so
that a larger machine needs no change here, and low enough that everything which is computed from a setting before a run
starts (parameters, FLOPs, memory, layouts) is finite and quick. They do not say whether a run fits a machine. The types
are strict, because a stored config is untrusted input too: neither a text nor a boolean passes for a number.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

MAX_WIDTH = 131_072
"""The limit of the model width; the widest published transformers have about 20,000."""
MAX_LAYERS = 1_000
MAX_HEADS = 4_096
MAX_EXPERTS = 1_048_576
"""The largest number of experts that a paper has tried in one layer (arXiv 2407.04153)."""
MAX_SIDE = 16_384
MAX_TOKENS = 65_536
MAX_BATCH_IMAGES = 1_048_576
MAX_IMAGES = 10**12
"""The limit of training images, a thousand times the largest image data sets."""
MAX_HELD_IMAGES = 10**7
"""The limit of validation images, all of which one process holds in memory."""
MAX_SAMPLED_IMAGES = 100_000
"""The limit of images sampled for a measurement, below 2^20, where the numbers of held-out images begin."""
MAX_STEPS = 10_000
MAX_WORLD = 131_072
"""The limit of processes in one run; the largest clusters have about as many accelerators."""
MAX_SEED = 2**63 - 1
"""The largest seed that all random generators and all integer columns of tables accept."""
MAX_FLOPS = 1e30
"""The limit of a training budget, a thousand times what has been spent on any model."""


def _not_below(least: float) -> AfterValidator:
    """Returns a validator that refuses positive numbers below `least`, which are taken for mistakes."""

    def check(value: float) -> float:
        if value < least:
            raise PydanticCustomError("too_small", "Input should be at least {least}", {"least": f"{least:g}"})
        return value

    return AfterValidator(check)


Width = Annotated[int, Field(strict=True, gt=0, le=MAX_WIDTH)]
Layers = Annotated[int, Field(strict=True, gt=0, le=MAX_LAYERS)]
Heads = Annotated[int, Field(strict=True, gt=0, le=MAX_HEADS)]
Experts = Annotated[int, Field(strict=True, ge=0, le=MAX_EXPERTS)]
TopK = Annotated[int, Field(strict=True, gt=0, le=MAX_EXPERTS)]
Side = Annotated[int, Field(strict=True, gt=0, le=MAX_SIDE)]
Tokens = Annotated[int, Field(strict=True, gt=0, le=MAX_TOKENS)]
BatchImages = Annotated[int, Field(strict=True, gt=0, le=MAX_BATCH_IMAGES)]
Images = Annotated[int, Field(strict=True, gt=0, le=MAX_IMAGES)]
ImagesOrNone = Annotated[int, Field(strict=True, ge=0, le=MAX_IMAGES)]
HeldImages = Annotated[int, Field(strict=True, gt=0, le=MAX_HELD_IMAGES)]
HeldImagesOrNone = Annotated[int, Field(strict=True, ge=0, le=MAX_HELD_IMAGES)]
SampledImagesOrNone = Annotated[int, Field(strict=True, ge=0, le=MAX_SAMPLED_IMAGES)]
Steps = Annotated[int, Field(strict=True, gt=0, le=MAX_STEPS)]
World = Annotated[int, Field(strict=True, gt=0, le=MAX_WORLD)]
Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]

WidthFactor = Annotated[float, Field(strict=True, gt=0, le=MAX_EXPERTS), _not_below(1e-6)]
"""A hidden width divided by the width, or expert slots per token, of which there are at most as many as experts."""
WidthFactorOrNone = Annotated[float, Field(strict=True, ge=0, le=1e6)]
TimeScale = Annotated[float, Field(strict=True, gt=0, le=1e6), _not_below(1e-6)]
GateScale = Annotated[float, Field(strict=True, gt=0, le=MAX_EXPERTS), _not_below(1e-6)]
LossWeight = Annotated[float, Field(strict=True, ge=0, le=1e6)]
LogitMean = Annotated[float, Field(strict=True, ge=-100, le=100)]
LogitStd = Annotated[float, Field(strict=True, gt=0, le=100), _not_below(1e-6)]
DataStd = Annotated[float, Field(strict=True, gt=0, le=1e3), _not_below(1e-6)]
TimeShift = Annotated[float, Field(strict=True, ge=1e-3, le=1e3)]
LearningRate = Annotated[float, Field(strict=True, gt=0, le=1e30), _not_below(1e-12)]
"""The upper limit allows runs that are meant to diverge; a rate near 1e38 would overflow float32 by itself."""
WeightDecay = Annotated[float, Field(strict=True, ge=0, le=1e3)]
Smoothing = Annotated[float, Field(strict=True, ge=0, lt=1)]
Epsilon = Annotated[float, Field(strict=True, gt=0, le=1.0), _not_below(1e-30)]
Norm = Annotated[float, Field(strict=True, gt=0, le=1e30), _not_below(1e-12)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
CooldownShare = Annotated[float, Field(strict=True, gt=0, le=1), _not_below(1e-9)]
Halflife = Annotated[float, Field(strict=True, gt=0, le=1e12), _not_below(1e-6)]
Text = Annotated[str, Field(max_length=4096)]
"""A name or a path; Linux refuses longer paths."""
Guidance = Annotated[float, Field(strict=True, ge=0, le=1e3)]
