"""Reads the columns of Parquet files and their types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from experiments.data.prepare.source_rows import raise_if_passing
from experiments.errors import ConfigError
from experiments.text import first_line


def read_schema(path: Path) -> pa.Schema:
    """Returns the schema of a Parquet file, in which views are plain text or bytes, which the values can become.

    Raises `ConfigError` for any other file.
    """
    if not path.is_file():  # opening a FIFO would block for ever
        raise ConfigError(f"SOURCE {path} cannot be read: it is not a regular file.", "Name or copy the file itself.")
    with reading(path):
        schema: pa.Schema = parquet.read_schema(path)
    return pa.schema([field.with_type(_without_views(field.type)) for field in schema], schema.metadata)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns errors while a Parquet file is read into a `ConfigError`, or as `raise_if_passing` does."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise_if_passing(error, str(path))
        raise ConfigError(f"SOURCE {path} cannot be read: {first_line(error)}.", "Check this file.") from error


def check_once(path: Path, columns: Sequence[str], wanted: Iterable[str]) -> None:
    """Raises `ConfigError` where a file has one of the columns that are read more than once."""
    twice = next((name for name in wanted if columns.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"SOURCE {path} cannot be read: it has the column {twice!r} twice.", "Rename one of them.")


def is_text(kind: pa.DataType) -> bool:
    """Says whether a column holds strings, also where it holds the numbers of different ones, as pandas stores them."""
    value = _without_views(kind.value_type if pa.types.is_dictionary(kind) else kind)
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def is_bytes(kind: pa.DataType) -> bool:
    """Says whether `kind` is that of plain bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def has_bytes(kind: pa.DataType) -> bool:
    """Says whether `kind` is the struct type in which `datasets` stores images."""
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """Returns `kind` with plain text and bytes in the place of views, also in a struct."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind
