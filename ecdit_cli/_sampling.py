"""Parses the options of sampling, which `ecdit sample` and `ecdit evaluate` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ecdit_cli._options import MAX_EMA_WIDTH, MAX_GUIDANCE, MAX_IMAGES, MIN_EMA_WIDTH
from experiments.text import printable, shortened

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig
    from experiments.evaluation.sampling.generate import SamplerSettings

MAX_SCALES = 100
"""The most guidance scales, and widths of the average, of one command: all images are sampled anew at each."""


def parse_guidance(text: str) -> tuple[float, ...]:
    """Parses `1,2,4` into scales. Raises `EcditError` for what is no number or out of range, and for too many."""
    from experiments.errors import EcditError

    shown = shortened(printable(text), 80)
    try:
        scales = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise EcditError(
            f"--guidance '{shown}' is not a list of scales.", "Write for example --guidance 1,2,4."
        ) from error
    if not all(0 <= scale <= MAX_GUIDANCE for scale in scales):
        raise EcditError(
            f"--guidance '{shown}' is out of range.", f"A scale is from 0 to {MAX_GUIDANCE:g}; 1 is no guidance."
        )
    if len(scales) > MAX_SCALES:
        raise EcditError(f"--guidance names {len(scales)} scales.", f"At most {MAX_SCALES} are measured at a time.")
    return scales


def parse_widths(text: str) -> tuple[float, ...]:
    """Parses `0.05,0.10` into widths of an average. Raises `EcditError` for what is none, and for too many."""
    from experiments.errors import EcditError

    shown = shortened(printable(text), 80)
    try:
        widths = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise EcditError(f"--ema '{shown}' is not a list of widths.", "Write for example --ema 0.05,0.10.") from error
    if not all(MIN_EMA_WIDTH <= width <= MAX_EMA_WIDTH for width in widths):
        raise EcditError(
            f"--ema '{shown}' is out of range.",
            f"A width is from {MIN_EMA_WIDTH:g} to {MAX_EMA_WIDTH:g}, where all of training counts alike.",
        )
    if len(widths) > MAX_SCALES:
        raise EcditError(f"--ema names {len(widths)} widths.", f"At most {MAX_SCALES} are measured at a time.")
    return widths


def parse_interval(text: str) -> tuple[float, float]:
    """Parses `0.1,0.9` into an interval of t. Raises `EcditError` where it is none."""
    from experiments.errors import EcditError

    try:
        start, stop = (float(part) for part in text.split(","))
    except ValueError:
        start, stop = 1.0, 0.0
    if not 0 <= start <= stop <= 1:
        raise EcditError(
            f"--guidance-interval '{shortened(printable(text), 80)}' is not START,STOP.",
            "Write two times from 0 (image) to 1 (noise): 0.1,0.9.",
        )
    return start, stop


def checked_number(num_captions: int, per_caption: int) -> int:
    """Returns the number of images. Raises `EcditError` for more than can be kept in memory."""
    from experiments.errors import EcditError

    num_images = num_captions * per_caption
    if num_images > MAX_IMAGES:
        raise EcditError(
            f"--per-caption {per_caption} of {num_captions:,} captions makes {num_images:,} images.",
            f"At most {MAX_IMAGES:,} are sampled at a time.",
        )
    return num_images


def sampler_settings(
    config: RunConfig, steps: int | None, guided: tuple[float | None, str, int | None], shift: float | None,
    sampler: str,
) -> SamplerSettings:  # fmt: skip
    """Returns the options as settings of the sampler; what is None is as the run samples while it trains.

    `guided` is the scale, the interval of t and the number of channels of guidance. Raises `ConfigError` for a shift or
    channels that do not fit.
    """
    from experiments.evaluation.sampling.generate import SamplerSettings
    from experiments.flow.samplers import Guidance

    scale, interval, channels = guided
    guidance = Guidance(config.eval.guidance if scale is None else scale, *parse_interval(interval), channels)
    return SamplerSettings.asked(config, steps, guidance, shift, sampler)
