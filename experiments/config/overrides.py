"""From a YAML file and `KEY=VALUE` overrides to a checked `RunConfig`; later settings win.

A key is the dotted path of a setting. Short forms: `model=nano` is `model.name=nano`, likewise `routing`, `data` and
`optim`. `arm="routing.name=dense model.ffn_factor=6"` stands for the overrides in it, at its place, so that a grid can
vary settings together. A leading `--` is accepted, because a W&B agent passes `--key=value`. What the text of a value
means is decided in `values.py`, whether settings fit each other in `checks.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from experiments.config.checks import check_config
from experiments.config.data_set import with_data_set
from experiments.config.schema import RunConfig
from experiments.config.values import Accepts, Scalar, accepted_by, convert
from experiments.config.yaml_file import read_yaml_text
from experiments.errors import ConfigError, did_you_mean

SHORT_FORMS = {section: f"{section}.name" for section in ("model", "routing", "data", "optim")}
ARM = "arm"
ALIKE = 0.6
"""Least share of equal letters for a suggestion, as in `did_you_mean`."""


def load_config(overrides: Sequence[str] = (), file: Path | None = None) -> RunConfig:
    """The complete, checked settings of a run: `file` (YAML, nested or dotted keys), then `overrides`.

    Raises `ConfigError` with one line naming key, value and the way out.
    """
    pairs = [] if file is None else list(_read_file(file))
    flat = _converted([*pairs, *map(_split, overrides)])
    config = build_config(flat)
    check_config(config)
    return config


def expand(overrides: Iterable[str]) -> dict[str, Scalar]:
    """Overrides as a flat mapping of dotted settings to values; short forms and arms are resolved."""
    return _converted(map(_split, overrides))


def build_config(flat: Mapping[str, Scalar]) -> RunConfig:
    """The complete settings from dotted settings, without the checks between them; reads the index of a data set."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        return RunConfig.model_validate(with_data_set(nested))
    except ValidationError as error:
        raise _limit_error(error) from error


@cache
def known_settings() -> dict[str, Accepts]:
    """Every dotted setting of a run and what it accepts."""
    found: dict[str, Accepts] = {}
    for section, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            leaves = field.annotation.model_fields
            found |= {f"{section}.{name}": accepted_by(leaf.annotation) for name, leaf in leaves.items()}
        else:
            found[section] = accepted_by(field.annotation)
    return found


def _converted(pairs: Iterable[tuple[str, str]]) -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for given, text in pairs:
        if given == ARM:
            flat |= expand(text.split())
            continue
        key = SHORT_FORMS.get(given, given)
        if key not in known_settings():
            raise unknown_setting(key)
        flat[key] = convert(key, text, known_settings()[key])
    return flat


def _split(override: str) -> tuple[str, str]:
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not KEY=VALUE.", "Write for example train.images=6400.")
    return key.strip(), text.strip()


def _read_file(file: Path) -> Iterator[tuple[str, str]]:
    """The settings of a YAML file as text. BaseLoader leaves every value as it is written."""
    raw = read_yaml_text(file, ConfigError)
    if raw is None:
        return
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} does not hold settings.", "Write lines such as `train.images: 6400`.")
    yield from _flattened(raw, prefix="")


def _flattened(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, str]]:
    sections = {key.split(".")[0] for key in known_settings() if "." in key}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flattened(value, f"{key}.")
        elif isinstance(value, list):
            raise ConfigError(f"{key}={value} is a list.", "A setting takes one value; lists belong in a sweep file.")
        elif not (value == "" and key in sections):
            yield key, value


def unknown_setting(key: str) -> ConfigError:
    """Names the settings most like `key`; without one, what its section holds, or the sections."""
    known, section = list(known_settings()), key.split(".")[0]
    in_section = [path for path in known if path.startswith(f"{section}.")]
    if key == section and in_section:
        return ConfigError(f"{key!r} is a group of settings.", f"Choose from: {', '.join(in_section)}.")
    likeness = {path: _likeness(key, path) for path in known}
    best = max(likeness.values())
    if best:
        hint = f"Did you mean {' or '.join(repr(path) for path in known if likeness[path] == best)}?"
    elif in_section:
        hint = f"Choose from: {', '.join(in_section)}."
    else:
        hint = did_you_mean(section, {path.split(".")[0] for path in known})
    return ConfigError(f"{key!r} is not a setting.", hint)


def _likeness(key: str, path: str) -> float:
    """0 unless the last parts are alike; more the closer they are, and the closer the sections are where given."""
    section, _, name = key.rpartition(".")
    path_section, _, path_name = path.rpartition(".")
    names = difflib.SequenceMatcher(None, name, path_name).ratio()
    sections = difflib.SequenceMatcher(None, section, path_section).ratio() if section else 0.0
    return names + sections if names >= ALIKE else 0.0


def _limit_error(error: ValidationError) -> ConfigError:
    """One line from pydantic's report. Types are right by now, so what is left are limits."""
    details = [detail for detail in error.errors() if detail["type"] != "literal_error"]
    assert details, error
    first, known = details[0], known_settings()
    key = next(k for n in (2, 1) if (k := ".".join(map(str, first["loc"][:n]))) in known)
    value = f"{first['input']:g}" if isinstance(first["input"], float) else first["input"]
    return ConfigError(f"{key}={value} is out of range.", first["msg"].replace("Input should be", "It must be") + ".")
