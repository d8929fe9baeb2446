"""Reads tables that name image files and give their captions: JSON lines, CSV or Parquet in the images' folder.

A row that cannot be read becomes a row with a problem, which is reported with its line number. A metadata file without
any readable line raises an error. A table without text does not hinder another one that has it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from experiments.data.prepare.folders import ImageFile
from experiments.data.prepare.pairing import is_image
from experiments.data.prepare.parquet_schema import check_once, has_bytes, is_bytes, is_text, read_schema, reading
from experiments.data.prepare.source_rows import look_up
from experiments.data.prepare.table_lines import NOT_TEXT, TableRow, read_lines
from experiments.data.prepare.text_columns import CAPTIONS, TextColumn
from experiments.errors import ConfigError, did_you_mean
from experiments.inputs import PIECE_BYTES

TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
PATH_COLUMNS = ("file_name", "image", "image_path", "filename", "filepath", "path", "file", "jpg", "png", "jpeg")
SAMPLED_LINES = 100
"""The number of readable rows whose keys are the columns of a table, unless only later rows have the columns."""
SAMPLED_IMAGES = 8
"""The number of first rows in which plain bytes are looked at for an image."""
UNUSED_IN_PATHS = frozenset({"Cc", "Cs"})
"""The categories of control characters, and of bytes that are no UTF-8; names of files may have any other."""


class LacksTextError(ConfigError):
    """Raised for a table that can be read and has no column of captions or labels."""


@dataclass(frozen=True)
class NamedImages:
    """Holds the image files that tables name, the column of their text, and why other tables are not used."""

    files: Sequence[ImageFile]
    text_column: str
    unused: Sequence[ConfigError]


def find_tables(names: Iterable[str]) -> list[str]:
    """Returns the tables named metadata, at most one for each folder; where there are none, returns all tables."""
    tables = all_tables(names)
    metadata: dict[str, str] = {}
    for wanted in METADATA_FILES:
        for name in tables:
            if os.path.basename(name) == wanted:
                metadata.setdefault(os.path.dirname(name), name)
    return sorted(metadata.values()) or tables


def all_tables(names: Iterable[str]) -> list[str]:
    """Returns the names of all tables."""
    return [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]


def is_metadata(name: str) -> bool:
    """Says whether the file name of a table is one of `METADATA_FILES`."""
    return os.path.basename(name) in METADATA_FILES


def read_tables(
    folder: Path, names: Iterable[str], image_column: str | None, caption_column: str | None, text: TextColumn
) -> NamedImages | None:
    """Returns the images that those of several tables name which have text; None where no table names images.

    Raises `ConfigError` where a table of metadata cannot be read, and the first error where no table has text.
    """
    files: list[ImageFile] = []
    columns: list[str] = []
    unused: list[ConfigError] = []
    for name in names:
        try:
            found = read_table(folder, name, image_column, caption_column, text)
        except ConfigError as error:
            if is_metadata(name) and not isinstance(error, LacksTextError):
                raise
            unused.append(error)
        else:
            files += found[0] if found else []
            columns += [found[1]] if found else []
    if unused and not columns:
        raise unused[0]
    return NamedImages(files, columns[0], unused) if columns else None


def read_table(
    folder: Path, name: str, image_column: str | None, caption_column: str | None, text: TextColumn
) -> tuple[list[ImageFile], str] | None:
    """Returns the image files that a table names, and its column of text; None where no column names files.

    Raises `ConfigError` for a file that cannot be read as a table, and `LacksTextError` where it has no such text.
    """
    path = folder / name
    if path.suffix.lower() == ".parquet":
        return _read_parquet(folder, name, image_column, caption_column, text)
    rows = read_lines(path)
    columns = _columns(rows, SAMPLED_LINES)
    if path_column(columns, image_column) is None or _text_column(columns, caption_column, text) is None:
        columns = _columns(rows)
    image = path_column(columns, image_column)
    if image is None:
        broken = next((f"{label}: {row}" for label, row in rows if isinstance(row, str)), None)
        if is_metadata(name) and broken and not columns:
            raise ConfigError(f"SOURCE {path} cannot be read: {broken}.", NOT_TEXT)
        return None
    caption = find_text_column(columns, str(path), caption_column, text)
    return [_image_file(name, label, row, image, caption) for label, row in rows], caption


def _read_parquet(
    folder: Path, name: str, image_column: str | None, caption_column: str | None, text: TextColumn
) -> tuple[list[ImageFile], str] | None:
    """Returns what `read_table` does. A table with bytes that names no file that is there is one of images."""
    path = folder / name
    image = path_column(_text_columns(path, image_column), image_column)
    if image is None:
        return None
    schema = read_schema(path)
    caption = find_text_column(schema.names, str(path), caption_column, text)
    files = [_image_file(name, label, row, image, caption) for label, row in _parquet_rows(path, image, caption)]
    may_hold_images = image != image_column and any(is_bytes(each.type) for each in schema if each.name != caption)
    if may_hold_images and not any(os.path.lexists(folder / file.name) for file in files):
        return None
    return files, caption


def columns_of(path: Path) -> list[str]:
    """Returns the columns of a table, or the keys of all its rows. Raises `ConfigError` where it cannot be read."""
    return list(read_schema(path).names) if path.suffix.lower() == ".parquet" else _columns(read_lines(path))


def holds_images(path: Path, image_column: str | None) -> bool:
    """Says whether a Parquet file holds images, and is not one that names them. Raises `ConfigError` for other files.

    Plain bytes may be something else, such as hashes, so that the first rows tell what they are.
    """
    schema = read_schema(path)
    plain = [field.name for field in schema if is_bytes(field.type)]
    if not any(map(has_bytes, schema.types)) and not _begins_with_images(path, plain):
        return False
    image = path_column(_text_columns(path, image_column), image_column)
    return image is None or (image != image_column and not _names_files(path, image))


def _begins_with_images(path: Path, columns: Sequence[str]) -> bool:
    """Says whether one of the first rows of a Parquet file holds an image in one of these columns."""
    if not columns:
        return False
    # Without a buffer a whole group of rows would be read into memory.
    with reading(path), parquet.ParquetFile(path, buffer_size=PIECE_BYTES) as file:
        rows = next(file.iter_batches(SAMPLED_IMAGES, columns=columns), None)
    values = [] if rows is None else [value for column in rows.columns for value in column.to_pylist()]
    return any(value is not None and is_image(value) for value in values)


def _names_files(path: Path, image: str) -> bool:
    """Says whether a column of a Parquet file names a file that is there."""
    files = [_image_file("", label, row, image, image) for label, row in _parquet_rows(path, image, image)]
    return any(os.path.lexists(path.parent / file.name) for file in files)


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
    """Returns the column of `text`: `given`, or the first of `text.columns`. Raises `LacksTextError` without one."""
    found = _text_column(columns, given, text)
    if found is None and given is not None:
        raise LacksTextError(f"{text.option} {given!r} is not a column of {source}.", did_you_mean(given, columns))
    if found is None:
        raise LacksTextError(
            f"SOURCE {source} has no {text.what}: its columns are {', '.join(columns)}.",
            f"Name the right one with {text.option}.",
        )
    return found


def _text_column(columns: Collection[str], given: str | None, text: TextColumn) -> str | None:
    if given is not None:
        return given if given in columns or given.partition(".")[0] in columns else None
    return next((name for name in text.columns if name in columns), None)


def _columns(rows: Iterable[TableRow], most: int | None = None) -> list[str]:
    """Returns the keys of the first `most` rows that can be read, or of all of them."""
    readable = (row for _, row in rows if not isinstance(row, str))
    return list(dict.fromkeys(column for row in islice(readable, most) for column in row))


def _text_columns(path: Path, given: str | None) -> list[str]:
    """Returns the text columns, which may name files. Unless one of them is `given`, returns none where another column
    holds images: a path beside such an image only describes it.
    """
    schema = read_schema(path)
    texts = [name for name, kind in zip(schema.names, schema.types, strict=True) if is_text(kind)]
    others = [field for field in schema if field.name not in texts]
    holds_images = any(field.name in PATH_COLUMNS or has_bytes(field.type) for field in others)
    return [] if holds_images and given not in texts else texts


def _parquet_rows(path: Path, image: str, caption: str) -> list[TableRow]:
    """Returns the rows with text as bytes, so that bytes that are not UTF-8 cost only their own row when decoded."""
    names = read_schema(path).names
    wanted = list(dict.fromkeys([image, caption if caption in names else caption.partition(".")[0]]))
    check_once(path, names, wanted)
    with reading(path):
        table = parquet.read_table(path, columns=wanted)
        for place, field in enumerate(table.schema):
            if is_text(field.type):
                column = table.column(place)
                plain = column.cast(field.type.value_type) if pa.types.is_dictionary(field.type) else column
                table = table.set_column(place, field.name, plain.cast(pa.large_binary()))
        rows = table.to_pylist()
    return [(f"{path.name} row {number}", row) for number, row in enumerate(rows)]


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
    if not isinstance(path, str) or not path or UNUSED_IN_PATHS & set(map(unicodedata.category, path)):
        return ImageFile(label, problem=f"{image} is not the path of a file")
    return ImageFile(os.path.normpath(os.path.join(os.path.dirname(table), path)), look_up(row, caption), is_named=True)
