"""Reads a file of records, JSON or JSON lines, and validates it against a schema, as it may be untrusted input.

A text, a boolean or a number out of range is not accepted as a number. Duplicate keys, NaN, and a path that is a
directory, a FIFO or far too large a file are refused. Each message names the file, and the line if there are several.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from experiments.errors import RecordError
from experiments.inputs import MAX_ROWS_BYTES, MAX_SETTINGS_BYTES, parse_json, read_end, read_input
from experiments.records.record_types import Record

Kind = TypeVar("Kind", bound=BaseModel)
TAIL_BYTES = 1 << 14
WAY_OUT = "Restore it, or start the run in a new folder."


@dataclass(frozen=True)
class RecordRows:
    """Holds the rows of one JSONL file, and the lines that could not be read as (line number, reason)."""

    rows: list[dict[str, Any]]
    lines: list[int]
    """The line number of each row."""
    damaged: list[tuple[int, str]]

    @property
    def num_damaged(self) -> int:
        """Returns how many lines could not be read."""
        return len(self.damaged)


def read_content(path: Path) -> bytes:
    """Returns the bytes of a file of rows, and no bytes where there is no file.

    Raises `RecordError` where something else is in its place, or where it cannot be read.
    """
    try:
        return read_input(path, MAX_ROWS_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _unreadable(path, error) from error


def read_jsonl(path: Path) -> RecordRows:
    """Returns the rows of a JSONL file, or none where there is no file; lines that are no JSON objects are damaged.

    Raises `RecordError` where something else is in its place, or where it cannot be read.
    """
    read = RecordRows([], [], [])
    for number, line in enumerate(read_content(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            read.rows.append(_object_of(line))
            read.lines.append(number)
        except ValueError as error:
            read.damaged.append((number, str(error).replace(" at line 1 column", " at column")))
    return read


def read_valid(path: Path, kind: type[Kind]) -> tuple[list[dict[str, Any]], list[int], list[tuple[int, str]]]:
    """Returns the rows of a JSONL file that are a `kind`, their line numbers, and the other lines with their faults.

    Raises `RecordError` as `read_jsonl`.
    """
    read = read_jsonl(path)
    rows, lines, damaged = [], [], list(read.damaged)
    for row, number in zip(read.rows, read.lines, strict=True):
        try:
            kind.model_validate(row, strict=True)
        except ValidationError as error:
            damaged.append((number, first_fault(error)))
        else:
            rows.append(row)
            lines.append(number)
    return rows, lines, sorted(damaged)


def last_rows(path: Path, kind: type[Record], word: bytes = b"{", anywhere: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the rows of a JSONL file whose lines hold `word`, the last line first; keys may be missing in them.

    Only the end of the file is read, because there can be many folders; `anywhere` reads the whole file where the end
    was not enough. Raises `RecordError` where the path is no regular file, or it cannot be read.
    """
    try:
        end = read_end(path, TAIL_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(path, error) from error
    yield from _rows_backwards(end, kind, word)
    if anywhere and len(end) == TAIL_BYTES:
        yield from _rows_backwards(read_content(path), kind, word)


def _rows_backwards(content: bytes, kind: type[Record], word: bytes) -> Iterator[dict[str, Any]]:
    for line in reversed(content.split(b"\n")):
        row = parse_row(line) if word in line else None
        if row is not None and all(fault["type"] == "missing" for fault in _faults(row, kind)):
            yield row


def _faults(row: dict[str, Any], kind: type[Record]) -> list[ErrorDetails]:
    try:
        kind.model_validate(row, strict=True)
    except ValidationError as error:
        return error.errors(include_url=False, include_context=False)
    return []


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Returns the row in one line of a JSONL file, or None where the line is cut short or no JSON object."""
    try:
        return _object_of(line)
    except ValueError:
        return None


def first_fault(error: ValidationError) -> str:
    """Returns the first fault and its place, such as `loss: Input should be a valid number`."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def _object_of(content: bytes) -> dict[str, Any]:
    raw = parse_json(content)
    if not isinstance(raw, dict):
        raise ValueError("it does not hold a JSON object")
    return raw


def _unreadable(path: Path, error: OSError) -> RecordError:
    return RecordError(f"{path} cannot be read: {error.strerror}.", "Put the file back, or make it readable.")


def read_object(path: Path, way_out: str = WAY_OUT, max_bytes: int = MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """Returns the JSON object in the file at `path`. Raises `RecordError` with `way_out` where there is none."""
    try:
        return _object_of(read_input(path, max_bytes))
    except FileNotFoundError as error:
        raise RecordError(f"{path} does not exist.", "Name the folder of a run, which holds this file.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise RecordError(f"{path} is damaged: {error}.", way_out) from error


def validated(kind: type[Kind], raw: object, path: Path, way_out: str = WAY_OUT) -> Kind:
    """Returns `raw`, which was read from `path`, as a record. Raises `RecordError` with its first fault."""
    try:
        return kind.model_validate(raw, strict=True)
    except ValidationError as error:
        raise RecordError(f"{path} is damaged: {first_fault(error)}.", way_out) from error
