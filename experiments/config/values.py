"""Converts the text of a value to the type of its setting.

A value means the same in a YAML file, on the command line and in a sweep, because all three hand over its text:
`1e-5`, `1_000`, `True`, `yes`, `None` and `null` are read by what the setting accepts, never by how they look. Which
settings exist is known to `overrides.py`; limits (greater than 0) are held by the models in `schema.py`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from experiments.errors import ConfigError, did_you_mean
from experiments.text import printable, shortened

Scalar = str | int | float | bool | None

NONE_SPELLINGS = frozenset({"none", "null", "~", ""})
TRUE_SPELLINGS = frozenset({"true", "yes", "on"})
FALSE_SPELLINGS = frozenset({"false", "no", "off"})
LONGEST_SHOWN = 80
TYPE_NAMES: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Accepts:
    """Describes the values that a setting accepts: any value of `kinds`, one of `words`, or None."""

    kinds: frozenset[type] = frozenset()
    words: tuple[str | int, ...] = ()
    none: bool = False

    def __str__(self) -> str:
        """Returns a text for error messages, such as `an integer, 'batch' or None`."""
        names = [name for kind, name in TYPE_NAMES.items() if kind in self.kinds]
        names += [repr(word) for word in self.words] + ["None"] * self.none
        return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class KeyOf:
    """Marks a text as one of the keys of `table`, in a type such as `Annotated[str, KeyOf(DATA_SETS)]`.

    Unlike those of a `Literal`, the names are looked up when a value is checked, so that the table may grow.
    """

    table: Mapping[str, object]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Returns the schema of the text with a check, whose error has the type of a literal's."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, name: str) -> str:
        if name not in self.table:
            raise PydanticCustomError("literal_error", "Input should be one of {names}", {"names": [*self.table]})
        return name


def accepted_by(annotation: Any, metadata: Sequence[object] = ()) -> Accepts:
    """Returns what a field with this annotation accepts; unions, literals and constraints are resolved.

    `metadata` is that of pydantic's field, which takes it out of an annotation that is `Annotated` as a whole.
    """
    for mark in metadata:
        if isinstance(mark, KeyOf):
            return Accepts(words=tuple(mark.table))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return Accepts(none=True)
    if origin is Literal:
        return Accepts(words=arguments)
    if origin is Annotated:
        return accepted_by(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        parts = [accepted_by(part) for part in arguments]
        kinds = frozenset().union(*(part.kinds for part in parts))
        words = tuple(word for part in parts for word in part.words)
        return Accepts(kinds, words, any(part.none for part in parts))
    assert annotation in TYPE_NAMES, f"no text form for {annotation}"
    return Accepts(frozenset({annotation}))


def convert(key: str, text: str, accepts: Accepts) -> Scalar:
    """Converts `text` to a value of the setting `key`. Raises `ConfigError` where the setting does not accept it."""
    if accepts.none and text.lower() in NONE_SPELLINGS:
        return None
    for word in accepts.words:
        if text == str(word):
            return word
    if bool in accepts.kinds and text.lower() in TRUE_SPELLINGS | FALSE_SPELLINGS:
        return text.lower() in TRUE_SPELLINGS
    number = _number(text, accepts.kinds)
    if number is not None:
        return number
    if str in accepts.kinds:
        return text
    words = [str(word) for word in accepts.words]
    hint = did_you_mean(text, words) if words else ""
    raise ConfigError(f"{key}='{shown(text)}' is not {accepts}.", hint if hint.startswith("Did") else "")


def shown(text: str) -> str:
    """Returns `text` for an error message: on one line and shortened."""
    return shortened(printable(text), LONGEST_SHOWN)


def _number(text: str, kinds: frozenset[type]) -> int | float | None:
    """Reads `text` as an integer where one is accepted and it is whole (as `1e6` is), else as a float if accepted.

    Only ASCII digits are read. Python also accepts those of other scripts, which are probably a mistake in a config.
    """
    if not text.isascii():
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    if int in kinds and value.is_integer():
        return int(text) if text.strip("+-").replace("_", "").isdigit() else int(value)
    return value if float in kinds else None
