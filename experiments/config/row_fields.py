"""Turns a wrong field in a row of a registry into one line with the row's name, the field and what is expected.

Rows of routers check their fields when they are made, because they are dataclasses of pydantic. Rows of metrics and
figures are plain dataclasses, since `ecdit --help` must not import pydantic; the rows of plugins are checked by
`check_fields` when they are added.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from experiments.errors import ConfigError, did_you_mean
from experiments.text import printable, shortened

LONGEST_VALUE = 80
CHECKED = ConfigDict(arbitrary_types_allowed=True, revalidate_instances="always")
"""Values inside a row, such as those that a metric records, are rows of their own whose fields are checked again."""


def field_error(kind: str, name: object, field: str, error: ValidationError, known: Iterable[str]) -> ConfigError:
    """Returns the error for the first fault that pydantic found in a row; `known` are the fields of such a row.

    `field` is the place where pydantic looked, to which it adds its own; it is empty for the row as a whole.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in (*([field] if field else []), *first["loc"]))
    row = f"{kind} {_shown(name)}"
    if first["type"] == "unexpected_keyword_argument":
        return ConfigError(f"{row}: its row has no field {place}.", did_you_mean(place, known))
    if first["type"].startswith("missing"):
        return ConfigError(f"{row}: its row lacks the field {place}.", f"Add {place}=... to the row.")
    expected = first["msg"][:1].lower() + first["msg"][1:]
    return ConfigError(f"{row}: the field {place}={_shown(first['input'])} is not accepted: {expected}.")


def check_fields(kind: str, row: Any) -> None:
    """Raises `ConfigError` where a field of `row`, which is a dataclass, has another type than its annotation."""
    hints = get_type_hints(type(row), include_extras=True)
    known = [each.name for each in fields(row)]
    for name in known:
        adapter = TypeAdapter(hints[name], config=CHECKED)
        try:
            adapter.validate_python(getattr(row, name), strict=True)
        except ValidationError as error:
            raise field_error(kind, row.name, name, error, known) from error


def _shown(value: object) -> str:
    return shortened(printable(" ".join(repr(value).split())), LONGEST_VALUE)
