"""Reads tables that other programs wrote, row by row, each row with its place in the file for error messages.

`.csv` and `.tsv` files have a header line; `.jsonl` has an object on each line; `.json` is one array of objects. The
caller knows what the columns mean: `image_folders.py` reads prompts, `imports.py` results.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.errors import ConfigError
from experiments.inputs import parse_json, read_input

MAX_TABLE_BYTES = 2**30
"""The largest table that is read. That of DSG-1k has 8,000 questions and 1 MiB."""
Row = tuple[str, dict[str, Any]]
"""The place of a row ('results.jsonl, line 7') and its values by column."""


def rows_of(path: Path) -> Iterator[Row]:
    """Yields the rows of a table file, in order. Raises `ConfigError` that says which line cannot be read, and why."""
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_lines, ".json": _json_array}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"cannot tell what kind of table {path} is.", f"Its name must end in {', '.join(readers)}.")
    return readers[path.suffix.lower()](path, text_of(path))


def text_of(path: Path) -> str:
    """Returns the text of a UTF-8 file, with or without a byte order mark. Raises `ConfigError` if unreadable."""
    try:
        return read_input(path, MAX_TABLE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: byte {error.start} does not fit.") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from error


def value_of(row: Row, column: str, kind: type, expected: str) -> Any:
    """Returns the value of a column. Raises `ConfigError`, with `expected` in it, where it is no `kind`."""
    where, values = row
    if not isinstance(values.get(column), kind):
        found = repr(values[column]) if values.get(column) is not None else "nothing"
        raise ConfigError(f"{where}: expected {expected} in {column!r}, found {found}.")
    return values[column]


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        twice = [name for name, times in Counter(reader.fieldnames or ()).items() if times > 1]
        if twice:
            raise ConfigError(f"{path}, line 1: the column {twice[0]!r} is there twice.")
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            if None in values or None in values.values():
                raise ConfigError(f"{where}: expected {len(reader.fieldnames or ())} columns, as in the first line.")
            yield where, values
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num + 1}: {error}.") from error  # follows the last good row


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _object(where, _parsed(where, line))


def _json_array(path: Path, text: str) -> Iterator[Row]:
    entries = _parsed(str(path), text)
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: expected an array of JSON objects.")
    for number, entry in enumerate(entries, start=1):
        yield _object(f"{path}, entry {number}", entry)


def _parsed(where: str, text: str) -> Any:
    try:
        return parse_json(text.encode())
    except ValueError as error:
        fault = str(error).replace(" at line 1 column", " at column")
        raise ConfigError(f"{where}: expected JSON, {fault[:1].lower()}{fault[1:]}.") from error


def _object(where: str, entry: Any) -> Row:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected a JSON object.")
    return where, entry
