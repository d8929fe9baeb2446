"""Reads the rows of tables that are text: CSV and JSON lines.

A row that cannot be read is its reason in place of its values. Bytes that are not UTF-8 are decoded to surrogate
characters, so that only the row with these bytes is lost and not the whole file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.data.prepare.source_rows import decode_text, parse_json, raise_if_passing
from experiments.errors import ConfigError
from experiments.inputs import MAX_ROWS_BYTES, read_input
from experiments.text import first_line

NOT_TEXT = "Write it as UTF-8: JSON lines have one object a line, CSV has the columns in its first line."
MORE_CELLS = "it has more cells than there are columns: quote a text that holds commas"
WRONG_QUOTES = "its quotes are not those of CSV: close each, and write one inside of a quoted text twice"
TableRow = tuple[str, Mapping[str, Any] | str]
"""The label of a row in messages, and its values or, as a string, the reason why it could not be read."""


def read_lines(path: Path) -> list[TableRow]:
    """Returns the rows of a file of CSV or JSON lines. Raises `ConfigError` where it is neither."""
    try:
        text = decode_text(read_input(path, MAX_ROWS_BYTES), errors="surrogateescape")
        if "\0" in text.partition("\n")[0]:
            raise ValueError("line 1 holds NUL bytes, as UTF-16 without a byte order mark does")
        return list(_csv_rows(text, path.name) if path.suffix.lower() == ".csv" else _json_rows(text, path.name))
    except OSError as error:
        raise_if_passing(error, str(path))
        raise ConfigError(f"SOURCE {path} cannot be read: {error.strerror}.", NOT_TEXT) from error
    except ValueError as error:
        raise ConfigError(f"SOURCE {path} cannot be read: {first_line(error)}.", NOT_TEXT) from error


def _json_rows(text: str, name: str) -> Iterator[TableRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name} line {number}", _parsed(line)


def _parsed(line: str) -> Mapping[str, Any] | str:
    try:
        return parse_json(line)
    except ValueError as error:
        return str(error)
    except RecursionError:
        return "its JSON is nested too deeply"


def _csv_rows(text: str, name: str) -> Iterator[TableRow]:
    """Yields the rows of CSV text.

    Raises `ValueError` where the first line cannot be read, or has a column twice. A row of more cells than columns
    holds a comma that is not quoted, so what stands before it is not the whole caption. Of a quote that is not closed
    the lines up to the next one would become the caption, so that quotes are read strictly.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a caption that is too long is listed, not refused
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [column for column in reader.fieldnames or () if column]
    except csv.Error as error:
        raise ValueError(f"line 1: {error}") from error
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise ValueError(f"line 1 has the column {twice!r} twice")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield f"{name} line {reader.reader.line_num}", WRONG_QUOTES
            continue
        more_cells = row.pop(None, ())  # `csv` collects them under None, as a column may be called "" (by pandas)
        yield f"{name} line {reader.line_num}", MORE_CELLS if any(more_cells) else row
