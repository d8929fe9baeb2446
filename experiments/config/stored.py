"""The settings that a run or a plan was stored with, as settings of this version.

They are input: another version may have written presets, routers or settings that do not exist here, and an editor
anything at all. Settings that an earlier version did not have yet get their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiments.config.schema import RunConfig
from experiments.errors import ConfigError, RecordError

WAY_OUT = "Leave it out, or use the version of ecdit that wrote it."


def stored_config(settings: Mapping[str, Any], file: Path) -> RunConfig:
    """The nested `settings` that stand in `file`. A `RecordError` names the first that this version does not know."""
    try:
        return RunConfig.model_validate(settings, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        setting = ".".join(str(part) for part in first["loc"])
        fault = f"{setting}: {first['msg']}"
    except ConfigError as error:
        fault = error.message.rstrip(".")
    raise RecordError(f"{file} has settings that this ecdit does not read: {fault}.", WAY_OUT)
