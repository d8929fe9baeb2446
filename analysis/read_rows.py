"""Reads the JSONL files of runs into frames, and reports the rows that could not be used.

`row_columns.py` parses a file at once. A file that it refuses is read again line by line through the schema, which says
what is wrong with each line. A row that was written again after a run resumed replaces the earlier one. `RunDir` knows
which files there are, and `row_cache.py` keeps what was read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.row_columns import Columns, RowKind, columns_of, fast_columns, is_finite
from experiments.errors import RecordError
from experiments.records.record_types import EvalRow, RoutingRow, StepRow
from experiments.records.strict_reading import read_content, read_valid

SETTINGS_KEY = "settings_key"
# The columns that identify a row within its run: of rows that agree in all of them, only the last counts.
IDENTITY: dict[RowKind, list[str]] = {
    StepRow: ["images_seen"],
    EvalRow: ["images_seen", "metric", "weights", "num_samples", "seed", SETTINGS_KEY],
    RoutingRow: ["images_seen", "layer", "condition"],
}
MOST_NAMED = 3
"""The number of damaged lines that a message names; the others are only counted."""


class ReadFile(NamedTuple):
    """The rows of one file, as an array for each column, and a reason for each group of rows that is left out."""

    columns: Columns
    left_out: list[str]


@dataclass(frozen=True)
class RowTable:
    """One frame with a categorical column `run`, and a (run, reason) for each group of rows that is not in it."""

    frame: pd.DataFrame
    left_out: list[tuple[str, str]]


def read_file(path: Path, kind: RowKind) -> ReadFile:
    """Reads one file: its rows with finite numbers, the last of equal ones, and those of steps in order.

    The rows of an evaluation have a column more, the text of their settings.
    """
    try:
        columns, lines, damaged = read_columns(path, kind)
    except RecordError as error:
        return ReadFile(no_rows(kind), [error.message.removesuffix(".")])
    finite = is_finite(columns, kind)
    reasons = [said_damaged(path, damaged)] if damaged else []
    if not finite.all():
        places = [f"line {lines[i] if lines else i + 1}" for i in np.flatnonzero(~finite)]
        reasons.append(_said(path, "without finite numbers", places))
        columns = {name: values[finite] for name, values in columns.items()}
    return ReadFile(_last_written(_complete(columns, kind), kind), reasons)


def said_damaged(path: Path, lines: Sequence[tuple[int, str]]) -> str:
    """Returns the message on damaged lines, as in `2 rows of evals.jsonl damaged (line 3: ...; line 7: ...)`."""
    return _said(path, "damaged", [f"line {number}: {reason}" for number, reason in lines])


def _said(path: Path, what: str, places: list[str]) -> str:
    """Returns the message that counts the unusable rows and names the first `MOST_NAMED` places."""
    rest = f"; and {len(places) - MOST_NAMED:,} more" if len(places) > MOST_NAMED else ""
    rows = "1 row" if len(places) == 1 else f"{len(places)} rows"
    return f"{rows} of {path.name} {what} ({'; '.join(places[:MOST_NAMED])}{rest})"


def as_table(runs: Sequence[str], files: Sequence[ReadFile], kind: RowKind) -> RowTable:
    """Joins the rows of files, each of one run, in their order.

    The files lose their columns meanwhile: many runs have a gigabyte of rows, which is not to be there twice.
    """
    left_out = [(run, reason) for run, file in zip(runs, files, strict=True) for reason in file.left_out]
    lengths = [len(file.columns["images_seen"]) for file in files]
    codes = np.repeat(np.arange(len(files)), lengths)
    joined: Columns = {"run": pd.Categorical.from_codes(codes, pd.Index(list(runs), dtype="str"))}
    for name, none in no_rows(kind).items():
        joined[name] = np.concatenate([none, *(file.columns.pop(name) for file in files)])
    return RowTable(pd.DataFrame(joined, copy=False), left_out)


def read_columns(path: Path, kind: RowKind) -> tuple[Columns, list[int], list[tuple[int, str]]]:
    """Returns the columns of one file, the line number of each row, and the damaged lines.

    The line numbers are empty where row i is on line i + 1, which holds for a file that was read the fast way. Raises
    `RecordError` where the path is not a readable file.
    """
    columns = fast_columns(read_content(path), kind)
    if columns is not None:
        return columns, [], []
    rows, lines, damaged = read_valid(path, kind)
    return columns_of(rows, kind), lines, damaged


def no_rows(kind: RowKind) -> Columns:
    """Returns the columns of a file without rows."""
    return _complete(columns_of([], kind), kind)


def _complete(columns: Columns, kind: RowKind) -> Columns:
    """Returns the columns with the text of settings, by which rows of evaluations are told apart."""
    if kind is not EvalRow:
        return columns
    texts = [json.dumps(given, sort_keys=True) if given else "{}" for given in columns["settings"]]
    return columns | {SETTINGS_KEY: np.fromiter(texts, dtype=object, count=len(texts))}


def _last_written(columns: Columns, kind: RowKind) -> Columns:
    """Keeps the last of the rows that agree in `IDENTITY`, which was written when the run resumed.

    Rows of steps are then in the order of `images_seen`, and others in that in which they stand in the file.
    """
    images = columns["images_seen"]
    if kind is StepRow and (images[1:] > images[:-1]).all():
        return columns
    identity: list[list[Any]] = [columns[name].tolist() for name in IDENTITY[kind]]
    last = dict(zip(zip(*identity, strict=True), range(len(images)), strict=True))
    if kind is StepRow:
        kept = [last[at] for at in sorted(last)]
    elif len(last) == len(images):
        return columns
    else:
        kept = sorted(last.values())
    return {name: values[kept] for name, values in columns.items()}
