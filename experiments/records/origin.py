"""Reads and writes what a sweep hands to a run about its place among the others: an `Origin` as JSON.

It travels as one setting of the run's config file (`ecdit.origin` in `experiments/config/designs.py`), because every
launcher passes that file on, and `run.json` keeps it.
"""

from __future__ import annotations

from pydantic import ValidationError

from experiments.errors import ConfigError
from experiments.records.record_types import Origin
from experiments.records.strict_reading import first_fault


def read_origin(text: str | None) -> Origin | None:
    """Returns the origin in JSON `text`, or None where there is no text. Raises `ConfigError` where it is none."""
    if text is None:
        return None
    try:
        return Origin.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(
            f"ecdit.origin is not what a sweep writes: {first_fault(error)}.", "Leave it out; only sweeps give it."
        ) from error


def written_origin(origin: Origin) -> str:
    """Returns `origin` as JSON, without what it does not say."""
    return origin.model_dump_json(exclude_defaults=True)
