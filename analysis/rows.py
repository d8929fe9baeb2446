"""The JSONL files of many runs as one frame, fast, with what could not be used counted.

A file of numbers is taken by `step_rows.py`; another is parsed as one JSON array of which the columns are taken; one
that does not allow this (a cut line, a text where a number belongs) goes line by line through the schema. A row that
was written again after a resumption replaces the earlier one. Which files there are is known by `RunDir`; what is done
with the frames by others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from pydantic_core import from_json

from analysis.step_rows import same_keys_columns
from experiments.records.layout import RunDir
from experiments.records.schema import EvalRow, RoutingRow, StepRow

RowKind = type[StepRow] | type[EvalRow] | type[RoutingRow]
Columns = dict[str, Any]

# What identifies a row in its run, and the numbers without which it says nothing.
IDENTITY = {
    EvalRow: ["images_seen", "metric", "weights", "num_samples", "seed", "settings_key"],
    RoutingRow: ["images_seen", "layer", "condition"],
}
REQUIRED = {
    StepRow: ["images_seen", "flops", "seconds", "loss"],
    EvalRow: ["images_seen", "value", "num_samples", "seed"],
    RoutingRow: ["images_seen", "layer", "dropped_share"],
}
TEXT = {"metric", "weights", "condition"}
NESTED = {"settings", "load", "experts_per_token"}
WHOLE = {"images_seen", "layer", "num_samples", "seed"}


@dataclass(frozen=True)
class RowTable:
    """One frame with a `run` column, categorical, and (run, reason) for what is not in it."""

    frame: pd.DataFrame
    left_out: list[tuple[str, str]]

    @staticmethod
    def concat(tables: Sequence[RowTable]) -> RowTable:
        """All tables as one, with `run` as text: only here, because texts are slow to send between processes."""
        frames = [table.frame.assign(run=table.frame["run"].astype("str")) for table in tables]
        left_out = [entry for table in tables for entry in table.left_out]
        return RowTable(pd.concat(frames, ignore_index=True), left_out)


def read_steps(files: list[tuple[RunDir, Path]], num_threads: int) -> RowTable:
    """The rows of `files` of `StepRow`, in the order of the files and of `images_seen`.

    In threads: Arrow reads numbers without Python's lock, and millions of rows are slow to send between processes.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        parts = list(pool.map(partial(_read_file, kind=StepRow), files))
    return _as_table(files, parts, StepRow)


def read_table(files: list[tuple[RunDir, Path]], kind: RowKind) -> RowTable:
    """The rows of `files` (each with its run), in the order of the files."""
    table = _as_table(files, [_read_file(file, kind) for file in files], kind)
    return RowTable(_last_written(table.frame, kind), table.left_out)


def _read_file(file: tuple[RunDir, Path], kind: RowKind) -> tuple[Columns, list[str]]:
    """The columns of one file, and what is not in them."""
    run, path = file
    columns, num_damaged = _read_columns(run, path, kind)
    columns, num_not_finite = _finite_rows(columns, kind)
    counts = ((num_damaged, "damaged"), (num_not_finite, "without finite numbers"))
    reasons = [f"{count} {'row' if count == 1 else 'rows'} of {path.name} {what}" for count, what in counts if count]
    return _in_order(columns) if kind is StepRow else columns, reasons


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
    """Rows in the order of `images_seen`; of those at the same number the last, which a resumption wrote."""
    images = columns["images_seen"]
    if (images[1:] > images[:-1]).all():
        return columns
    last_by_images = dict(zip(images.tolist(), range(len(images)), strict=True))
    kept = [last_by_images[at] for at in sorted(last_by_images)]
    return {name: values[kept] for name, values in columns.items()}


def _read_columns(run: RunDir, path: Path, kind: RowKind) -> tuple[Columns, int]:
    """The columns of one file, and the number of lines that could not be used."""
    content = path.read_bytes() if path.is_file() else b""
    numbers = same_keys_columns(content) if kind is StepRow else None
    if numbers is not None:
        missing = np.full(len(next(iter(numbers.values()))), np.nan)
        return {name: numbers.get(name, missing) for name in kind.model_fields}, 0
    try:
        return _columns(from_json(b"[" + content.strip().replace(b"\n", b",") + b"]"), kind), 0
    except (ValueError, TypeError, AttributeError):
        pass  # Not silent: the slow way below reads every line again and counts what it cannot use.
    read = run.read_rows(path)
    valid = [row for row in read.rows if _is_valid(row, kind)]
    return _columns(valid, kind), read.num_damaged + len(read.rows) - len(valid)


def _columns(rows: list[dict[str, Any]], kind: RowKind) -> Columns:
    """Arrays by field: float64 where numbers are, objects for texts and lists; a missing number is NaN."""
    fields = list(kind.model_fields)
    columns = _numbers(rows, [name for name in fields if name not in TEXT | NESTED])
    for name in fields:
        if name in TEXT or name in NESTED:
            values = [row.get(name) for row in rows]
            if name in TEXT and not all(isinstance(value, str) for value in values):
                raise TypeError(f"{name} is not a text in every row")
            columns[name] = np.fromiter(values, dtype=object, count=len(values))
    return columns


def _numbers(rows: list[dict[str, Any]], names: list[str]) -> Columns:
    """The columns `names`; at once where all rows have the keys of the first, as most files have."""
    present = [name for name in names if rows and name in rows[0]]
    columns = {name: _optional(rows, name) for name in names if name not in present}
    try:
        values = chain.from_iterable(map(itemgetter(*present), rows)) if len(present) > 1 else ()
        matrix = np.fromiter(values, dtype=float).reshape(len(rows), len(present))
    except (KeyError, TypeError, ValueError):
        return columns | {name: _optional(rows, name) for name in present}
    return columns | {name: matrix[:, i] for i, name in enumerate(present)}


def _optional(rows: list[dict[str, Any]], name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([row.get(name) for row in rows], dtype=float)


def _is_valid(row: dict[str, Any], kind: RowKind) -> bool:
    try:
        kind.model_validate(row)
    except ValidationError:
        return False
    return True


def _finite_rows(columns: Columns, kind: RowKind) -> tuple[Columns, int]:
    finite = np.all([np.isfinite(columns[name]) for name in REQUIRED[kind]], axis=0)
    if finite.all():
        return columns, 0
    return {name: values[finite] for name, values in columns.items()}, int((~finite).sum())


def _last_written(frame: pd.DataFrame, kind: RowKind) -> pd.DataFrame:
    """Of the rows with one identity the last, which a resumption wrote."""
    if kind is EvalRow:
        frame["settings_key"] = [json.dumps(given, sort_keys=True) if given else "{}" for given in frame["settings"]]
    return frame.drop_duplicates(["run", *IDENTITY[kind]], keep="last", ignore_index=True)
