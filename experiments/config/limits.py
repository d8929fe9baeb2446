"""Defines the least and the greatest value of every numeric setting, and the types that enforce them.

A number outside of them is a slip or an attack, not a plan. The limits lie well above what anybody has trained or
could, so that a larger machine needs no change here, and low enough that everything which is computed from a setting
before a run starts (parameters, FLOPs, memory, layouts) is finite and quick. They do not say whether a run fits a
machine. Types are strict, because a stored config is input too: a text or a boolean is no number.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

MAX_WIDTH = 131_072
"""The widest published transformers have about 20,000 columns."""
MAX_LAYERS = 1_000
MAX_HEADS = 4_096
MAX_EXPERTS = 1_048_576
"""The most that a paper has tried in one layer (arXiv 2407.04153)."""
MAX_SIDE = 16_384
MAX_TOKENS = 65_536
MAX_BATCH_IMAGES = 1_048_576
MAX_IMAGES = 10**12
"""A thousand times the largest image data sets."""
MAX_HELD_IMAGES = 10**7
"""Images of a validation set, which a process holds by itself."""
MAX_SAMPLED_IMAGES = 100_000
"""Images that are sampled for a measurement. It stays below the numbers of the held-out images, which begin at 2^20."""
MAX_STEPS = 10_000
MAX_WORLD = 131_072
"""Processes of one run; the largest clusters have about as many accelerators."""
MAX_SEED = 2**63 - 1
"""The largest that every random generator and every table of integers takes."""
MAX_FLOPS = 1e30
"""A thousand times what has been spent on any model."""


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
"""Hidden width over width; or expert slots per token, which are at most as many as there are experts."""
WidthFactorOrNone = Annotated[float, Field(strict=True, ge=0, le=1e6)]
LossWeight = Annotated[float, Field(strict=True, ge=0, le=1e6)]
LogitMean = Annotated[float, Field(strict=True, ge=-100, le=100)]
LogitStd = Annotated[float, Field(strict=True, gt=0, le=100), _not_below(1e-6)]
LearningRate = Annotated[float, Field(strict=True, gt=0, le=1e30), _not_below(1e-12)]
"""Runs that are meant to diverge have absurd rates; a larger one would overflow in float32 by itself."""
WeightDecay = Annotated[float, Field(strict=True, ge=0, le=1e3)]
Smoothing = Annotated[float, Field(strict=True, ge=0, lt=1)]
Epsilon = Annotated[float, Field(strict=True, gt=0, le=1.0), _not_below(1e-30)]
Norm = Annotated[float, Field(strict=True, gt=0, le=1e30), _not_below(1e-12)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Halflife = Annotated[float, Field(strict=True, gt=0, le=1e12), _not_below(1e-6)]
Text = Annotated[str, Field(max_length=4096)]
"""A name or a path; no file system takes a longer one."""
Guidance = Annotated[float, Field(strict=True, ge=0, le=1e3)]
