"""Checks the settings of a measurement, which tables hold as columns beside the columns of their own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

MAX_NUMBER = 1e12
"""The largest number of a setting that tables compute with."""
NUMBERS_IN_SETTINGS = frozenset({
    "guidance", "guidance_start", "guidance_stop", "steps", "shift", "batch_images", "num_threads", "rounds",
    "ema_width", "guidance_channels",
})  # fmt: skip
"""Settings of a measurement that tables compute with."""
NOT_IN_SETTINGS = frozenset({
    "metric", "value", "low", "high", "spread", "weights", "num_samples", "num_seeds", "seed", "run", "setting",
    "study", "arm", "variant",
})  # fmt: skip
"""Names that are columns of their own in every table of measurements."""


def checked_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns `settings` of a measurement. Raises `ValueError` where a table cannot hold them beside its columns."""
    for name, value in settings.items():
        if name in NOT_IN_SETTINGS:
            raise ValueError(f"{name!r} is no setting of a measurement")
        if not (value is None or type(value) in (str, int, float, bool)):
            raise ValueError(f"{name} should be a number or a text")
        if name in NUMBERS_IN_SETTINGS and (type(value) not in (int, float) or not abs(value) <= MAX_NUMBER):
            raise ValueError(f"{name} should be a number of at most {MAX_NUMBER:g}")
    return settings


MeasurementSettings = Annotated[dict[str, Any], AfterValidator(checked_settings)]
