"""Reads the settings that were stored with a run, a plan or exported weights, as settings of this version.

They are untrusted input. Another version may have written presets, routers or settings that do not exist here, and
anybody may have edited them. Settings that an earlier version did not have yet get their defaults.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from experiments.config.checks import check_config
from experiments.config.init_checks import ONLY_WITH
from experiments.config.overrides import known_settings, unknown_setting
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError, RecordError, did_you_mean
from experiments.text import printable, shortened

WAY_OUT = "Use the version of ecdit that wrote it."


def stored_config(settings: Mapping[str, Any], file: Path, unloaded: Collection[str] = ()) -> RunConfig:
    """Returns the nested `settings` from `file` as a config. Raises `RecordError` for the first unknown setting.

    `unloaded` are routers of plugins that need not be loaded, since no model is built.
    """
    try:
        return RunConfig.model_validate(settings, strict=True, context={"unloaded": unloaded})
    except ValidationError as error:
        fault = _fault(error)
    except ConfigError as error:
        fault = error
    raise RecordError(f"{file}: {fault.message}", fault.hint or WAY_OUT)


def buildable_config(settings: Mapping[str, Any], file: Path) -> RunConfig:
    """Returns `stored_config`, and also checks that the settings fit each other, so that a model can be built."""
    config = stored_config(settings, file)
    try:
        check_config(_without_unread(config))
    except ConfigError as error:
        raise RecordError(f"{file}: {error.message}", WAY_OUT) from error
    return config


def _without_unread(config: RunConfig) -> RunConfig:
    """Returns `config` with defaults in place of what says nothing of the model, and what earlier versions accepted.

    They measured small images while a run trained, sampled with more steps than there are, and took settings that
    nothing reads.
    """
    evaluation = {"metric_images": 0, "sample_steps": 1}
    unread = {name: type(config.train).model_fields[name].default for name in ONLY_WITH}
    routing, row = {}, ROUTERS[config.routing.name]
    if row.rule != "tokens":
        routing["balance_loss_weight"] = row.balance_loss_weight
    changes = {"eval": evaluation, "train": unread, "routing": routing}
    return config.model_copy(
        update={section: getattr(config, section).model_copy(update=values) for section, values in changes.items()}
    )


@lru_cache(maxsize=1)
def unstored_defaults() -> Mapping[str, Any]:
    """Returns the dotted settings that are stored only where their value is not the default, with that default."""
    return {
        f"{section}.{name}": leaf.default
        for section, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for name, leaf in field.annotation.model_fields.items()
        if leaf.exclude_if is not None and leaf.default is not None
    }


def stored_value(settings: Mapping[str, Any], name: str) -> Any:
    """Returns the value of the dotted setting `name` in the nested `settings` of a run.

    A setting that is not stored has its default, which is None unless `unstored_defaults` has it.
    """
    section, _, field = name.rpartition(".")
    held = settings[section] if section else settings
    return held[field] if field in held else unstored_defaults().get(name)


def _fault(error: ValidationError) -> ConfigError:
    """Returns pydantic's first fault, worded like the same mistake on a command line."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = [printable(str(part)) for part in first["loc"]]
    known = known_settings()
    key = next((k for n in (2, 1) if (k := ".".join(where[:n])) in known), ".".join(where[:2]))
    if first["type"] == "extra_forbidden":
        key = shortened(key, 80)
        sections = {path.split(".")[0] for path in known}
        is_setting = "." in key
        return (
            unknown_setting(key) if is_setting else ConfigError(f"'{key}' is no setting.", did_you_mean(key, sections))
        )
    if first["type"] == "missing":
        return ConfigError(f"{key} is missing.")
    value = shortened(printable(repr(first["input"])), 80)
    if key not in known:
        return ConfigError(f"{key or 'config'}={value} is not a group of settings.")
    if first["type"].startswith(("greater", "less", "finite", "too_")):
        return ConfigError(
            f"{key}={value} is out of range.", f"{first['msg'].replace('Input should be', 'It must be')}."
        )
    return ConfigError(f"{key}={value} is not {known[key]}.")
