"""Reads tables that name image files and give their captions: JSON lines, CSV or Parquet in the images' folder.

A row that cannot be read becomes a row with a problem, which is reported with its line number. A metadata file without
any readable line raises an error. Bytes that are not UTF-8 are decoded to surrogate characters, so that only the row
with these bytes is lost and not the whole file.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from experiments.data.prepare.folders import ImageFile
from experiments.data.prepare.source_rows import decode_text, look_up, parse_json
from experiments.data.prepare.text_columns import CAPTIONS, TextColumn
from experiments.errors import ConfigError, did_you_mean
from experiments.inputs import MAX_ROWS_BYTES, read_input
from experiments.text import first_line

TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
PATH_COLUMNS = ("file_name", "image", "image_path", "filename", "filepath", "path", "file", "jpg", "png", "jpeg")
SAMPLED_LINES = 100
"""The number of readable rows whose keys count as the columns of a table."""
NOT_TEXT = "Write it as UTF-8: JSON lines have one object a line, CSV has the columns in its first line."
MORE_CELLS = "it has more cells than there are columns: quote a text that holds commas"
TableRow = tuple[str, Mapping[str, Any] | str]
"""The label of a row in messages, and its values or, as a string, the reason why it could not be read."""


def find_tables(names: Iterable[str]) -> list[str]:
    """Returns the tables named metadata, at most one for each folder; where there are none, returns all tables."""
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]
    metadata: dict[str, str] = {}
    for wanted in METADATA_FILES:
        for name in tables:
            if os.path.basename(name) == wanted:
                metadata.setdefault(os.path.dirname(name), name)
    return sorted(metadata.values()) or tables


def is_metadata(name: str) -> bool:
    """Says whether the file name of a table is one of `METADATA_FILES`."""
    return os.path.basename(name) in METADATA_FILES


def read_table(
    folder: Path, name: str, image_column: str | None, caption_column: str | None, text: TextColumn = CAPTIONS
) -> tuple[list[ImageFile], str] | None:
    """Returns the image files that a table names, and its column of text; None where no column names files.

    Raises `ConfigError` for a file that cannot be read as a table, or has no such text.
    """
    path = folder / name
    in_parquet = path.suffix.lower() == ".parquet"
    columns, lines = (_text_columns(path, image_column), []) if in_parquet else _lines(path)
    image = path_column(columns, image_column)
    if image is None:
        broken = next((f"{label}: {row}" for label, row in lines if isinstance(row, str)), None)
        if is_metadata(name) and broken and not columns:
            raise ConfigError(f"SOURCE {path} cannot be read: {broken}.", NOT_TEXT)
        return None
    caption = find_text_column(read_schema(path).names if in_parquet else columns, str(path), caption_column, text)
    rows = _parquet_rows(path, image, caption) if in_parquet else lines
    return [_image_file(name, label, row, image, caption) for label, row in rows], caption


def real_paths(folder: Path, files: Sequence[ImageFile]) -> list[str | None]:
    """Returns the path of the image that each row of a table names, and None for a row that names none.

    Links are followed, so that all spellings of a path are one.
    """
    return [os.path.realpath(folder / file.name) if file.is_named else None for file in files]


def unlisted(folder: Path, images: Iterable[str], named: Collection[str | None]) -> list[ImageFile]:
    """Returns the images whose path is not in `named`, because no table names them. They are reported as left out,
    since they have no caption."""
    return [ImageFile(name) for name in images if os.path.realpath(folder / name) not in named]


def find_text_column(columns: Collection[str], source: str, given: str | None, text: TextColumn = CAPTIONS) -> str:
    """Returns the column of `text`: `given`, or the first of `text.columns`. Raises `ConfigError` if it is absent."""
    if given is not None:
        if given not in columns and given.partition(".")[0] not in columns:
            raise ConfigError(f"{text.option} {given!r} is not a column of {source}.", did_you_mean(given, columns))
        return given
    for name in text.columns:
        if name in columns:
            return name
    raise ConfigError(
        f"SOURCE {source} has no {text.what}: its columns are {', '.join(columns)}.",
        f"Name the right one with {text.option}.",
    )


def read_schema(path: Path) -> pa.Schema:
    """Returns the schema of a Parquet file. Raises `ConfigError` for any other file."""
    if not path.is_file():  # opening a FIFO would block for ever
        raise ConfigError(f"SOURCE {path} cannot be read: it is not a regular file.", "Name or copy the file itself.")
    try:
        return parquet.read_schema(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"SOURCE {path} cannot be read: {first_line(error)}.", "Check this file.") from error


def _lines(path: Path) -> tuple[list[str], list[TableRow]]:
    """Returns the columns and rows of a file of CSV or JSON lines. Raises `ConfigError` where it is neither."""
    try:
        text = decode_text(read_input(path, MAX_ROWS_BYTES), errors="surrogateescape")
        if "\0" in text.partition("\n")[0]:
            raise ValueError("line 1 holds NUL bytes, as UTF-16 without a byte order mark does")
        rows = list(_csv_rows(text, path.name) if path.suffix.lower() == ".csv" else _json_rows(text, path.name))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ConfigError(f"SOURCE {path} cannot be read: {reason}.", NOT_TEXT) from error
    sampled = [row for _, row in rows if not isinstance(row, str)][:SAMPLED_LINES]
    return list(dict.fromkeys(column for row in sampled for column in row)), rows


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

    Raises `ValueError`, naming the line, where the csv module cannot read it, or where a column is there twice. A row
    of more cells than columns holds a comma that is not quoted, so what stands before it is not the whole caption.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a caption that is too long is listed, not refused
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = [column for column in reader.fieldnames or () if column]
        twice = next((column for column in columns if columns.count(column) > 1), None)
        if twice is not None:
            raise ValueError(f"line 1 has the column {twice!r} twice")
        for row in reader:
            more_cells = row.pop(None, ())  # `csv` collects them under None, as a column may be called "" (by pandas)
            yield f"{name} line {reader.line_num}", MORE_CELLS if any(more_cells) else row
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _text_columns(path: Path, given: str | None) -> list[str]:
    """Returns the text columns, which may name files. Unless one of them is `given`, returns none where another column
    holds images: a path beside such an image only describes it.
    """
    schema = read_schema(path)
    texts = [name for name, kind in zip(schema.names, schema.types, strict=True) if _is_text(kind)]
    others = [field for field in schema if field.name not in texts]
    holds_images = any(field.name in PATH_COLUMNS or _has_bytes(field.type) for field in others)
    return [] if holds_images and given not in texts else texts


def _has_bytes(kind: pa.DataType) -> bool:
    """Says whether `kind` is the struct type in which `datasets` stores images."""
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _parquet_rows(path: Path, image: str, caption: str) -> list[TableRow]:
    """Returns the rows with text as bytes, so that bytes that are not UTF-8 cost only their own row when decoded."""
    names = read_schema(path).names
    wanted = list(dict.fromkeys([image, caption if caption in names else caption.partition(".")[0]]))
    try:
        table = parquet.read_table(path, columns=wanted)
        for place, field in enumerate(table.schema):
            if _is_text(field.type):
                table = table.set_column(place, field.name, table.column(place).cast(pa.large_binary()))
        rows = table.to_pylist()
    except (OSError, ValueError) as error:
        raise ConfigError(f"SOURCE {path} cannot be read: {first_line(error)}.", "Check this file.") from error
    return [(f"{path.name} row {number}", row) for number, row in enumerate(rows)]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def path_column(columns: Sequence[str], given: str | None) -> str | None:
    """Returns the path column among `columns`, or None. A `given` name `image` also means the usual path columns."""
    if given is not None and given in columns:
        return given
    return next((name for name in PATH_COLUMNS if name in columns), None) if given in (None, "image") else None


def _image_file(table: str, label: str, row: Mapping[str, Any] | str, image: str, caption: str) -> ImageFile:
    if isinstance(row, str):
        return ImageFile(label, problem=row)
    path = look_up(row, image)
    if isinstance(path, bytes):
        path = path.decode(errors="replace")
    if not isinstance(path, str) or not path or not path.isprintable():
        return ImageFile(label, problem=f"{image} is not the path of a file")
    return ImageFile(os.path.normpath(os.path.join(os.path.dirname(table), path)), look_up(row, caption), is_named=True)
