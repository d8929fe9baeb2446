"""Builds a checked `RunConfig` from a YAML file and `KEY=VALUE` overrides.

Overrides win over the file, and a later override wins over an earlier one, because a sweep and a W&B agent append the
settings that they vary to the given ones. The keys of a file have no order, so a setting that is given twice in it is
refused.

A key is the dotted path of a setting. Short forms exist: `model=nano` means `model.name=nano`, and likewise `routing`,
`data` and `optim`. `arm="routing.name=dense model.ffn_factor=6"` is replaced by the overrides in it, so that a grid can
vary settings together. Words of a W&B agent are understood too: a leading `--`, a group of nested parameters as one
word (`optim={'learning_rate': 0.0001}`), and those of a requeued run, which are all that W&B had stored of it.
`values.py` interprets the text of a value, and `checks.py` decides whether settings fit each other.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from experiments.config.checks import check_config
from experiments.config.data_sets import completed_settings
from experiments.config.schema import RunConfig
from experiments.config.values import NONE_SPELLINGS, Accepts, Scalar, accepted_by, convert, shown
from experiments.config.yaml_file import KeyPath, Spelling, parse_yaml, read_yaml, refuse_repeated
from experiments.errors import ConfigError, did_you_mean
from experiments.records.wandb_mirror import RESOLVED
from experiments.text import printable, shortened

SHORT_FORMS = {section: f"{section}.name" for section in ("model", "routing", "data", "optim")}
ARM = "arm"
DESIGN_SECTION = "ecdit"
"""The section of settings that holds the designs of `designs.py`."""
STORED_BY_WANDB = "_wandb"
"""The key under which W&B keeps its own facts in the config of a run."""
RECORDED = "config_id"
"""The key which shows that the words of a requeued run include what our W&B mirror stored."""
ALIKE = 0.6
"""The smallest share of equal letters for which a name is suggested, as in `did_you_mean`."""
LONGEST_NUMBER = 24


def load_config(overrides: Sequence[str] = (), file: Path | None = None) -> RunConfig:
    """Returns the complete, checked settings of a run: `file` (YAML, nested or dotted keys), then `overrides`.

    Raises `ConfigError` with one line naming key, value and the way out.
    """
    return checked_config([*(read_settings(file) if file is not None else []), *split_words(overrides)])


def checked_config(pairs: Iterable[tuple[str, str]]) -> RunConfig:
    """Returns the complete, checked settings of a run from keys and texts, of which later ones win."""
    config = build_config(_converted(pairs))
    check_config(config)
    return config


def expand(overrides: Iterable[str]) -> dict[str, Scalar]:
    """Returns overrides as a mapping of dotted settings to values; short forms, groups and arms are resolved."""
    return _converted(split_words(overrides))


def split_words(overrides: Iterable[str]) -> list[tuple[str, str]]:
    """Returns overrides as keys and texts in their order; arms and groups are replaced by the settings in them.

    W&B starts a requeued run with all that it had stored of it: the sweep's parameters, and where the run had started,
    what our mirror added (`experiments/records/wandb_mirror.py`), which holds every resolved setting. Then only those
    are taken, because the arms and designs among the parameters are resolved in them already. A mirror of an earlier
    version stored them by section alone.
    """
    pairs = [pair for pair in map(_split, overrides) if pair[0] != STORED_BY_WANDB]
    resolved_text = dict(pairs).get(RESOLVED, "")
    if resolved_text.startswith("{"):
        content = parse_yaml(resolved_text, RESOLVED, ConfigError, as_text=True).value
        return [(".".join(path), text) for path, text in _flattened(content)]
    if any(key == RECORDED for key, _ in pairs):
        resolved = {*known_settings(), *SHORT_FORMS, *_sections()} - {DESIGN_SECTION}
        pairs = [(key, text) for key, text in pairs if key in resolved]
        pairs.sort(key=lambda pair: pair[1].startswith("{"))  # the groups are the resolved settings, and win
    return [each for key, text in pairs for each in _inner(key, text)]


def build_config(flat: Mapping[str, Scalar]) -> RunConfig:
    """Builds complete settings from dotted ones without checking that they fit; reads the files of its data set."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        return RunConfig.model_validate(completed_settings(nested))
    except ValidationError as error:
        raise _limit_error(error) from error


def validated(config: RunConfig) -> RunConfig:
    """Returns `config`, which was changed without validation, after checking its limits."""
    try:
        return RunConfig.model_validate(config.model_dump())
    except ValidationError as error:
        raise _limit_error(error) from error


@cache
def known_settings() -> dict[str, Accepts]:
    """Returns every dotted setting of a run and what it accepts."""
    found: dict[str, Accepts] = {}
    for section, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            leaves = field.annotation.model_fields
            found |= {f"{section}.{name}": accepted_by(leaf.annotation, leaf.metadata) for name, leaf in leaves.items()}
        else:
            found[section] = accepted_by(field.annotation, field.metadata)
    return found


def resolved_name(key: str) -> str:
    """Returns the dotted setting that `key` abbreviates, or `key` where it is no short form."""
    return SHORT_FORMS.get(key, key)


def _converted(pairs: Iterable[tuple[str, str]]) -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for given, text in pairs:
        key = resolved_name(given)
        if key not in known_settings():
            raise unknown_setting(key)
        flat[key] = convert(key, text, known_settings()[key])
    return flat


def _split(override: str) -> tuple[str, str]:
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError(f"'{shown(override)}' is not KEY=VALUE.", "Write for example train.images=6400.")
    return key.strip(), text.strip()


def _inner(key: str, text: str) -> list[tuple[str, str]]:
    """Returns the settings that one word stands for: those of an arm or of a group, or itself."""
    if key == ARM:
        return _of_arm(text)
    if key in _sections() and text.startswith("{"):
        return _of_group(key, text)
    return [(key, text)]


def _of_arm(text: str) -> list[tuple[str, str]]:
    inner = [_split(word) for word in text.split()]
    names = Counter(resolved_name(key) for key, _ in inner)
    for name, times in names.items():
        if name == ARM:
            raise ConfigError(
                f"the arm '{shown(text)}' contains another arm, which is not possible.",
                "Write the settings of the inner arm out.",
            )
        if times > 1:
            raise ConfigError(f"{name} is given twice in the arm '{shown(text)}'.", "Keep one of them.")
    return inner


def _of_group(section: str, text: str) -> list[tuple[str, str]]:
    """Returns the settings in a mapping in Python's or JSON's notation, which YAML can read."""
    content = parse_yaml(text, section, ConfigError, as_text=True).value
    return [(f"{section}.{name}", _written(f"{section}.{name}", value)) for name, value in content.items()]


def _written(key: str, value: Any) -> str:
    """Returns the text of a value that was read as text; only a design and some settings may be a list."""
    if isinstance(value, str):
        return value
    accepts = known_settings().get(key)
    if accepts is None and isinstance(value, dict | list):
        return str(value)
    if accepts is not None and accepts.listed and isinstance(value, list):
        return ",".join(map(str, value))
    kind = "a list" if isinstance(value, list) else "a group"
    raise ConfigError(
        f"{key}={shown(str(value))} is {kind}.", "A setting takes one value; lists belong in a sweep file."
    )


@cache
def _sections() -> frozenset[str]:
    """Returns the names of all groups of settings, including that of designs."""
    return frozenset({key.split(".")[0] for key in known_settings() if "." in key} | {DESIGN_SECTION})


def read_settings(file: Path) -> list[tuple[str, str]]:
    """Returns the settings of a YAML file as keys and texts.

    Raises `ConfigError` where one is given twice in any spelling.
    """
    content = read_yaml(file, ConfigError, as_text=True)
    if content.value is None:
        return []
    if not isinstance(content.value, dict):
        raise ConfigError(f"{file} does not hold settings.", "Write lines such as `train.images: 6400`.")
    found: list[tuple[str, str]] = []
    spellings: list[tuple[str, Spelling]] = []
    for path, text in _flattened(content.value):
        spelling = Spelling(".".join(path), content.lines[path])
        try:
            inner = _inner(spelling.text, text)
        except ConfigError as error:
            raise ConfigError(f"{file}: line {spelling.line}: {error.message}", error.hint) from error
        found += inner
        spellings += [(resolved_name(key), spelling) for key, _ in inner]
    refuse_repeated(spellings, str(file), ConfigError)
    return found


def _flattened(tree: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    for name, value in tree.items():
        key = ".".join((*path, name))
        if isinstance(value, dict):
            yield from _flattened(value, (*path, name))
        elif not (isinstance(value, str) and value.lower() in NONE_SPELLINGS and key in _sections()):
            yield (*path, name), _written(key, value)


def unknown_setting(key: str) -> ConfigError:
    """Returns an error that suggests settings similar to `key`, or lists its section's settings or the sections."""
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
    return ConfigError(f"'{shown(key)}' is not a setting.", hint)


def _likeness(key: str, path: str) -> float:
    """Returns the similarity of `key` to `path`: 0 unless the last parts are similar; closer sections add a little."""
    section, _, name = key.rpartition(".")
    path_section, _, path_name = path.rpartition(".")
    names = difflib.SequenceMatcher(None, name, path_name).ratio()
    sections = difflib.SequenceMatcher(None, section, path_section).ratio() if section else 0.0
    return 3 * names + sections if names >= ALIKE else 0.0


def _limit_error(error: ValidationError) -> ConfigError:
    """Turns pydantic's report into one line. Types were checked before, so that only limits can be violated."""
    details = [detail for detail in error.errors() if detail["type"] != "literal_error"]
    assert details, error
    first, known = details[0], known_settings()
    key = next(k for n in (2, 1) if (k := ".".join(map(str, first["loc"][:n]))) in known)
    value = first["input"]
    text = f"{value:g}" if isinstance(value, float) else shortened(printable(str(value)), LONGEST_NUMBER)
    return ConfigError(f"{key}={text} is out of range.", first["msg"].replace("Input should be", "It must be") + ".")
