"""Converts the text of a value to the type of its setting.

A value means the same in a YAML file, on the command line and in a sweep, because all three hand over its text:
`1e-5`, `1_000`, `True`, `yes`, `None` and `null` are read by what the setting accepts, never by how they look.
`overrides.py` knows which settings exist, and the models of `schema.py` hold their limits (such as greater than 0).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticCustomError

from experiments.errors import ConfigError, did_you_mean
from experiments.text import printable, shortened

Scalar = str | int | float | bool | None

NONE_SPELLINGS = frozenset({"none", "null", "~", ""})
TRUE_SPELLINGS = frozenset({"true", "yes", "on"})
FALSE_SPELLINGS = frozenset({"false", "no", "off"})
READ_BY_YAML: Mapping[str | int, str] = {"off": "False", "on": "True"}
"""The texts that words have become in a sweep file which W&B read, whose YAML 1.1 takes a bare `off` for a boolean."""
BARE_WORDS = "W&B reads a bare on, yes, off or no in YAML as True or False: put the word in quotes."
LONGEST_SHOWN = 80
TYPE_NAMES: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class OneOf:
    """Marks a text that must be a name in `registry`. Plugins may add names at any time, so none is copied."""

    registry: Collection[str]
    hint: Callable[[], str] = str
    """Returns the way out where no name in the registry is similar to what was given; it may depend on plugins."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names for some of the registry, under which nothing is stored."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        """Returns the JSON schema of the text, with the names that are known now."""
        return {**handler(core_schema), "enum": list(self.registry)}

    def known(self, name: str) -> str:
        """Returns `name`, or raises the error that pydantic has for literals where the registry lacks it."""
        if name not in self.registry:
            raise PydanticCustomError("literal_error", "Input should be one of {names}", {"names": [*self.registry]})
        return name


@dataclass(frozen=True)
class ListedText:
    """Marks a text that a YAML file may also write as a list; `description` names what it holds in error messages."""

    description: str


@dataclass(frozen=True)
class OneForm:
    """Marks a text that can be written in several ways, of which only the one that `write` returns is stored.

    What is stored already stays as it is, and so do the ids of the runs that hold it.
    """

    write: Callable[[str], str]


@dataclass(frozen=True)
class Accepts:
    """Describes the values that a setting accepts: any value of `kinds`, one of `words` or `names`, or None."""

    kinds: frozenset[type] = frozenset()
    literals: tuple[str | int, ...] = ()
    none: bool = False
    names: OneOf | None = None
    listed: ListedText | None = None
    form: OneForm | None = None

    @property
    def words(self) -> tuple[str | int, ...]:
        """Returns the words that are accepted now."""
        return (*self.literals, *(self.names.registry if self.names else ()))

    def __str__(self) -> str:
        """Returns a text for error messages, such as `an integer, 'batch' or None`."""
        names = [name for kind, name in TYPE_NAMES.items() if kind in self.kinds]
        names += [repr(word) for word in self.words] + ["None"] * self.none
        names += [self.listed.description] if self.listed else []
        return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def accepted_by(annotation: Any, metadata: Sequence[Any] = ()) -> Accepts:
    """Returns what a field with this annotation accepts; unions, literals and constraints are resolved.

    `metadata` is that of pydantic's field, which takes it out of an annotation that is `Annotated` as a whole.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    for names in (each for each in metadata if isinstance(each, OneOf)):
        return Accepts(names=names)
    for listed in (each for each in metadata if isinstance(each, ListedText)):
        return Accepts(listed=listed)
    for form in (each for each in metadata if isinstance(each, OneForm)):
        return Accepts(frozenset({str}), form=form)
    if annotation is type(None):
        return Accepts(none=True)
    if origin is Literal:
        return Accepts(literals=arguments)
    if origin is Annotated:
        return accepted_by(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        parts = [accepted_by(part) for part in arguments]
        kinds = frozenset().union(*(part.kinds for part in parts))
        words = tuple(word for part in parts for word in part.literals)
        return Accepts(
            kinds, words, any(part.none for part in parts),
            listed=next((part.listed for part in parts if part.listed), None),
            form=next((part.form for part in parts if part.form), None),
        )  # fmt: skip
    assert annotation in TYPE_NAMES, f"no text form for {annotation}"
    return Accepts(frozenset({annotation}))


def convert(key: str, text: str, accepts: Accepts) -> Scalar:
    """Converts `text` to a value of the setting `key`. Raises `ConfigError` where the setting does not accept it."""
    if accepts.none and text.lower() in NONE_SPELLINGS:
        return None
    if accepts.names is not None:
        text = accepts.names.aliases.get(text, text)
    for word in accepts.words:
        if text == str(word):
            return word
    if bool in accepts.kinds and text.lower() in TRUE_SPELLINGS | FALSE_SPELLINGS:
        return text.lower() in TRUE_SPELLINGS
    for word in accepts.words:
        if text == READ_BY_YAML.get(word):
            return word
    number = _number(text, accepts.kinds)
    if number is not None:
        return number
    if str in accepts.kinds or accepts.listed:
        return text if accepts.form is None else accepts.form.write(text)
    words = [*map(str, accepts.words), *(accepts.names.aliases if accepts.names else ())]
    hint = did_you_mean(text, words) if words else ""
    way_out = BARE_WORDS if words and text in READ_BY_YAML.values() else ""
    way_out = accepts.names.hint() if accepts.names else way_out
    raise ConfigError(f"{key}='{shown(text)}' is not {accepts}.", hint if hint.startswith("Did") else way_out)


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
