"""Parses the rows of one JSONL file into columns, fast, and checks them against the types and limits of the schema.

A file is parsed as one JSON array. A file that does not pass (a truncated line, a text in place of a number, a
duplicate key) gives None; `read_rows.py` then reads it again line by line, and says what is wrong with each line.
"""

from __future__ import annotations

import math
from operator import itemgetter
from types import NoneType
from typing import Any, NamedTuple, get_args

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic_core import from_json

from experiments.records.measurement_settings import checked_settings
from experiments.records.record_types import MAX_MEASURED, EvalRow, RoutingRow, StepRow

RowKind = type[StepRow] | type[EvalRow] | type[RoutingRow]
Columns = dict[str, Any]

TEXT = {"metric", "weights", "condition"}
OPTIONAL_NESTED = {"settings", "slots_by_time", "slots_by_image"}
NESTED = {"load", "experts_per_token", *OPTIONAL_NESTED}
WITH_GAPS = {"slots_by_time"}
"""Lists in which a number may be missing: no image of a batch of one timestep has a t of another tenth."""
WHOLE = {"images_seen", "layer", "num_samples", "seed"}
FLAGS = {"while_training"}
"""Columns of true or false, which become numbers, so that a missing one is NaN as elsewhere."""
LARGEST_EXACT = 2**53
"""Every whole number up to here is exact in float64; a larger one is left to the reader that goes line by line."""


class Limits(NamedTuple):
    """The range that the schema allows in a column of numbers, and whether every row must have a number."""

    lowest: float
    highest: float
    is_required: bool


def _limits(kind: RowKind) -> dict[str, Limits]:
    """Returns the limits of each column of numbers, read from the constraints of the schema's fields."""
    found = {}
    for name, field in kind.model_fields.items():
        if name not in TEXT | NESTED:
            exact = float(LARGEST_EXACT) if name in WHOLE else math.inf
            lowest = max(-exact, *(float(str(each.ge)) for each in field.metadata if isinstance(each, Ge)), -math.inf)
            highest = min(exact, *(float(str(each.le)) for each in field.metadata if isinstance(each, Le)), math.inf)
            found[name] = Limits(lowest, highest, field.is_required())
    return found


LIMITS = {kind: _limits(kind) for kind in (StepRow, EvalRow, RoutingRow)}
WORDS: dict[RowKind, dict[str, set[str]]] = {
    kind: {name: set(get_args(field.annotation)) for name, field in kind.model_fields.items() if name in TEXT}
    for kind in (EvalRow, RoutingRow)
}
"""The texts that the schema allows in each column of texts; an empty set allows any text."""


def fast_columns(content: bytes, kind: RowKind) -> Columns | None:
    """Returns the columns of a file in which every line is a valid row of `kind`, or None for any other file."""
    try:
        rows = from_json(b"[" + content.rstrip().replace(b"\n", b",") + b"]")
        if not _have_one_of_each_key(rows, content, kind):
            return None
        columns = columns_of(rows, kind)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None  # Not silent: the caller reads every line again and says what it cannot use.
    return columns if _are_within_limits(columns, kind) else None


def _have_one_of_each_key(rows: list[dict[str, Any]], content: bytes, kind: RowKind) -> bool:
    """Returns whether every row has only keys of the schema, and none twice; the parser silently keeps the last.

    Duplicates show as fewer parsed keys than there are `":` in the text, which follows every key. A file in another
    layout (with blanks before the colon, say) fails this test too, and is then read line by line.
    """
    num_keys = sum(map(len, rows))
    if "settings" in kind.model_fields:
        num_keys += sum(len(row.get("settings") or ()) for row in rows)
    return num_keys == content.count(b'":') and set().union(*rows) <= kind.model_fields.keys()


def columns_of(rows: list[dict[str, Any]], kind: RowKind) -> Columns:
    """Returns an array for each field: numeric for numbers, of objects for texts and lists; a missing number is NaN.

    Raises `ValueError` or `TypeError` where a value has another type than in the schema.
    """
    columns: Columns = {}
    for name in kind.model_fields:
        values = _values(rows, name)
        if name in NESTED:
            _require_nested(name, values)
            columns[name] = np.fromiter(values, dtype=object, count=len(values))
        elif name in TEXT:
            _require_words(name, values, WORDS[kind][name])
            columns[name] = np.fromiter(values, dtype=object, count=len(values))
        else:
            columns[name] = _numbers(values, name, LIMITS[kind][name].is_required)
    return columns


def _values(rows: list[dict[str, Any]], name: str) -> list[Any]:
    """Returns the value of `name` in each row, None where it is missing."""
    try:
        return list(map(itemgetter(name), rows))  # three times as fast as a loop, and most files lack no value
    except KeyError:
        return [row.get(name) for row in rows]


def _require_words(name: str, values: list[Any], allowed: set[str]) -> None:
    found = set(values)
    if not all(type(value) is str for value in found) or (allowed and not found <= allowed):
        raise TypeError(f"{name} is another text in some row")


def _require_nested(name: str, values: list[Any]) -> None:
    """Raises `ValueError` or `TypeError` unless every value is valid settings (or None), or else a list of numbers."""
    for value in values:
        if value is None and name in OPTIONAL_NESTED:
            continue
        if name == "settings":
            checked_settings(value)
            continue
        numbers = value
        if name in WITH_GAPS and type(value) is list:
            numbers = [each for each in value if each is not None]
        if type(numbers) is not list or not set(map(type, numbers)) <= {int, float}:
            raise TypeError(f"{name} is no list of numbers in some row")
        if any(abs(each) > MAX_MEASURED for each in numbers):  # NaN passes: it is named afterwards
            raise ValueError(f"{name} holds a number out of range in some row")


def _numbers(values: list[Any], name: str, is_required: bool) -> np.ndarray[tuple[int], np.dtype[Any]]:
    types = set(map(type, values))
    if name in WHOLE:
        if not types <= {int}:
            raise TypeError(f"{name} is no whole number in some row")
        return np.array(values, dtype=np.int64)
    if name in FLAGS:
        if not types <= {bool, NoneType}:
            raise TypeError(f"{name} is neither true nor missing in some row")
    elif not types <= ({int, float} if is_required else {int, float, NoneType}):
        raise TypeError(f"{name} is no number in some row")
    return np.array(values, dtype=np.float64)


def _are_within_limits(columns: Columns, kind: RowKind) -> bool:
    """Returns whether every finite number is allowed by the schema; `is_finite` finds NaN and infinity afterwards."""
    for name, (lowest, highest, _) in LIMITS[kind].items():
        values = columns[name]
        if len(values) == 0:
            continue
        if lowest > -math.inf and np.fmin.reduce(values) < lowest:
            return False
        if highest < math.inf and highest < np.fmax.reduce(values) and (values[~np.isposinf(values)] > highest).any():
            return False
        if name in WHOLE and values.dtype != np.int64 and (np.trunc(values) != values).any():
            return False
    return True


def is_finite(columns: Columns, kind: RowKind) -> NDArray[np.bool_]:
    """Returns for each row whether all its required numbers are finite and none of its optional ones is infinite."""
    required = [columns[name] for name, limits in LIMITS[kind].items() if limits.is_required]
    optional = [columns[name] for name, limits in LIMITS[kind].items() if not limits.is_required]
    with np.errstate(all="ignore"):  # A finite sum proves that all numbers are finite, which is faster.
        is_simple = all(math.isfinite(values.sum()) for values in required)
    found = [] if is_simple else [np.isfinite(values) for values in required]
    found += [~np.isinf(values) for values in optional]
    result: NDArray[np.bool_] = np.logical_and.reduce([np.ones(len(required[0]), dtype=np.bool_), *found])
    return result
