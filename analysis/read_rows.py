"""Read the JSONL files of many runs into one frame, fast, and report the rows that could not be used.

A file is parsed as one JSON array, and its columns are checked against the types and limits of the schema. A file that
does not pass (a truncated line, a text in place of a number, a duplicate key) is read again line by line through the
schema, which says what is wrong with each line. A row that was written again after a run resumed replaces the earlier
one. `RunDir` knows which files there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic_core import from_json

from experiments.errors import RecordError
from experiments.records.measurement_settings import checked_settings
from experiments.records.record_types import MAX_MEASURED, EvalRow, RoutingRow, StepRow
from experiments.records.run_folder import RunDir
from experiments.records.strict_reading import read_content, read_valid

RowKind = type[StepRow] | type[EvalRow] | type[RoutingRow]
Columns = dict[str, Any]

# The columns that identify a row within its run: of rows that agree in all of them, only the last counts.
IDENTITY = {
    EvalRow: ["images_seen", "metric", "weights", "num_samples", "seed", "settings_key"],
    RoutingRow: ["images_seen", "layer", "condition"],
}
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
MOST_NAMED = 3
"""The number of damaged lines that a message names; the others are only counted."""


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


@dataclass(frozen=True)
class RowTable:
    """One frame with a categorical column `run`, and a (run, reason) for each group of rows that is not in it."""

    frame: pd.DataFrame
    left_out: list[tuple[str, str]]

    @staticmethod
    def concat(tables: Sequence[RowTable]) -> RowTable:
        """Joins the tables and converts `run` to text only here, because texts are slow to send to a process."""
        frames = [table.frame.assign(run=table.frame["run"].astype("str")) for table in tables]
        left_out = [entry for table in tables for entry in table.left_out]
        return RowTable(pd.concat(frames, ignore_index=True), left_out)


def read_steps(files: list[tuple[RunDir, Path]]) -> RowTable:
    """Reads files of `StepRow`; the rows are in the order of the files, and in a file in that of `images_seen`."""
    return _as_table(files, [_read_file(file, StepRow) for file in files], StepRow)


def read_table(files: list[tuple[RunDir, Path]], kind: RowKind) -> RowTable:
    """Reads `files`, each given with its run; the rows are in the order of the files, the last of equal ones kept."""
    table = _as_table(files, [_read_file(file, kind) for file in files], kind)
    return RowTable(_last_written(table.frame, kind), table.left_out)


def _read_file(file: tuple[RunDir, Path], kind: RowKind) -> tuple[Columns, list[str]]:
    """Returns the columns of one file, and a reason for each group of its rows that is left out."""
    _, path = file
    try:
        columns, lines, damaged = _read_columns(path, kind)
    except RecordError as error:
        return _columns([], kind), [error.message.removesuffix(".")]
    finite = _is_finite(columns, kind)
    reasons = [said_damaged(path, damaged)] if damaged else []
    if not finite.all():
        places = [f"line {lines[i] if lines else i + 1}" for i in np.flatnonzero(~finite)]
        reasons.append(_said(path, "without finite numbers", places))
        columns = {name: values[finite] for name, values in columns.items()}
    return _in_order(columns) if kind is StepRow else columns, reasons


def said_damaged(path: Path, lines: Sequence[tuple[int, str]]) -> str:
    """Returns the message on damaged lines, as in `2 rows of evals.jsonl damaged (line 3: ...; line 7: ...)`."""
    return _said(path, "damaged", [f"line {number}: {reason}" for number, reason in lines])


def _said(path: Path, what: str, places: list[str]) -> str:
    """Returns the message that counts the unusable rows and names the first `MOST_NAMED` places."""
    rest = f"; and {len(places) - MOST_NAMED:,} more" if len(places) > MOST_NAMED else ""
    rows = "1 row" if len(places) == 1 else f"{len(places)} rows"
    return f"{rows} of {path.name} {what} ({'; '.join(places[:MOST_NAMED])}{rest})"


def _as_table(files: list[tuple[RunDir, Path]], parts: list[tuple[Columns, list[str]]], kind: RowKind) -> RowTable:
    all_columns = [columns for columns, _ in parts] or [_columns([], kind)]
    lengths = [len(columns["images_seen"]) for columns, _ in parts]
    joined = {name: np.concatenate([columns[name] for columns in all_columns]) for name in kind.model_fields}
    whole = {name: values.astype("int64") for name, values in joined.items() if name in WHOLE}
    codes = np.repeat(np.arange(len(files)), lengths)
    runs = pd.Categorical.from_codes(codes, pd.Index([str(run.path) for run, _ in files]))
    left_out = [
        (str(run.path), reason) for (run, _), (_, reasons) in zip(files, parts, strict=True) for reason in reasons
    ]
    return RowTable(pd.DataFrame({"run": runs, **joined, **whole}, copy=False), left_out)


def _in_order(columns: Columns) -> Columns:
    """Sorts the rows by `images_seen` and keeps the last of equal ones, which was written when the run resumed."""
    images = columns["images_seen"]
    if (images[1:] > images[:-1]).all():
        return columns
    last_by_images = dict(zip(images.tolist(), range(len(images)), strict=True))
    kept = [last_by_images[at] for at in sorted(last_by_images)]
    return {name: values[kept] for name, values in columns.items()}


def _read_columns(path: Path, kind: RowKind) -> tuple[Columns, list[int], list[tuple[int, str]]]:
    """Returns the columns of one file, the line number of each row, and the damaged lines.

    The line numbers are empty where row i is on line i + 1, which holds for a file that was read the fast way. Raises
    `RecordError` where the path is not a readable file.
    """
    columns = _fast_columns(read_content(path), kind)
    if columns is not None:
        return columns, [], []
    rows, lines, damaged = read_valid(path, kind)
    return _columns(rows, kind), lines, damaged


def _fast_columns(content: bytes, kind: RowKind) -> Columns | None:
    """Returns the columns of a file in which every line is a valid row of `kind`, or None for any other file."""
    try:
        rows = from_json(b"[" + content.rstrip().replace(b"\n", b",") + b"]")
        if not _have_one_of_each_key(rows, content, kind):
            return None
        columns = _columns(rows, kind)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None  # Not silent: the caller reads every line again and says what it cannot use.
    return columns if _are_within_limits(columns, kind) else None


def _have_one_of_each_key(rows: list[dict[str, Any]], content: bytes, kind: RowKind) -> bool:
    """Returns whether every row has only keys of the schema, and none twice; the parser silently keeps the last.

    Duplicates show as fewer parsed keys than there are `":` in the text, which follows every key. A file in another
    layout (with blanks before the colon, say) fails this test too, and is then read line by line.
    """
    num_keys = sum(map(len, rows)) + sum(len(row.get("settings") or ()) for row in rows)
    return num_keys == content.count(b'":') and set().union(*rows) <= kind.model_fields.keys()


def _columns(rows: list[dict[str, Any]], kind: RowKind) -> Columns:
    """Returns an array for each field: numeric for numbers, of objects for texts and lists; a missing number is NaN.

    Raises `ValueError` or `TypeError` where a value has another type than in the schema.
    """
    columns: Columns = {}
    for name in kind.model_fields:
        values = [row.get(name) for row in rows]
        if name in NESTED:
            _require_nested(name, values)
            columns[name] = np.fromiter(values, dtype=object, count=len(values))
        elif name in TEXT:
            _require_words(name, values, WORDS[kind][name])
            columns[name] = np.fromiter(values, dtype=object, count=len(values))
        else:
            columns[name] = _numbers(values, name, LIMITS[kind][name].is_required)
    return columns


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
    """Returns whether every finite number is allowed by the schema; `_is_finite` finds NaN and infinity afterwards."""
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


def _is_finite(columns: Columns, kind: RowKind) -> NDArray[np.bool_]:
    """Returns for each row whether all its required numbers are finite and none of its optional ones is infinite."""
    required = [columns[name] for name, limits in LIMITS[kind].items() if limits.is_required]
    optional = [columns[name] for name, limits in LIMITS[kind].items() if not limits.is_required]
    with np.errstate(all="ignore"):  # A finite sum proves that all numbers are finite, which is faster.
        is_simple = all(math.isfinite(values.sum()) for values in required)
    found = [] if is_simple else [np.isfinite(values) for values in required]
    found += [~np.isinf(values) for values in optional]
    result: NDArray[np.bool_] = np.logical_and.reduce([np.ones(len(required[0]), dtype=np.bool_), *found])
    return result


def _last_written(frame: pd.DataFrame, kind: RowKind) -> pd.DataFrame:
    """Keeps the last of the rows that agree in `IDENTITY`, which was written when the run resumed."""
    if kind is EvalRow:
        frame["settings_key"] = [json.dumps(given, sort_keys=True) if given else "{}" for given in frame["settings"]]
    return frame.drop_duplicates(["run", *IDENTITY[kind]], keep="last", ignore_index=True)
