"""Reads tables that hold images, Parquet files and data sets of the Hub, through Hugging Face `datasets`.

`datasets` converts them once and maps them into memory. An image is given as bytes or as a path. Paths come from
whoever wrote the table, so only those inside the table's folder or the Hub's cache are opened. Text is read as bytes
and decoded here row by row, so that bytes that are not UTF-8 cost only their own row.

Legend: N rows, M different images.
"""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from experiments.data.order import Integers
from experiments.data.prepare.folders import inside
from experiments.data.prepare.path_tables import find_text_column, read_schema
from experiments.data.prepare.source_rows import MAX_IMAGE_BYTES, Row, as_caption, listed_as, look_up
from experiments.data.prepare.text_columns import CAPTIONS, TextColumn
from experiments.errors import ConfigError, did_you_mean
from experiments.inputs import read_input
from experiments.libraries import library
from experiments.text import first_line, shortened

IMAGE_COLUMNS = ("image", "jpg", "png", "jpeg")
"""Names of image columns, used where no column has the type of images."""
SHOWN_CHARACTERS = 80
NO_CLASS = -1
"""The label of images whose class is not known, as `datasets` writes it for test splits."""


@dataclass(frozen=True)
class TableRows:
    """Holds the rows of a data set. Paths in rows from `starts[n]` on must lie in one of the folders `folders[n]`."""

    dataset: Any
    image_column: str
    caption_column: str
    starts: Sequence[int]
    folders: Sequence[Sequence[Path]]
    class_names: Sequence[str] | None = None
    """The names that the data set gives to the numbers in its column of labels; None where it gives none."""
    kind: TextColumn = CAPTIONS

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.dataset)

    def read(self, number: int) -> Row:
        """Returns row `number`. Raises `UnusableRowError` where it has no image, or its image or text is unreadable."""
        name = f"row {number}"
        with listed_as(name):
            row = self.dataset[number]
        image = row[self.image_column]
        if image and image.get("path"):
            name = os.path.basename(image["path"]) or name
        with listed_as(name):
            if image is None or (image["bytes"] is None and not image["path"]):
                raise ValueError("it has no image")
            content = image["bytes"] if image["bytes"] is not None else self._file(number, image["path"])
            if len(content) > MAX_IMAGE_BYTES:
                raise ValueError(f"it is larger than {MAX_IMAGE_BYTES / 2**20:,.0f} MiB, the most that is read")
            return Row(content, self._text_of(row), name)

    def text(self, number: int) -> str | None:
        """Returns the caption or label of row `number`. Raises `UnusableRowError` where it is unreadable."""
        with listed_as(f"row {number}"):
            return self._text_of(self._texts[number])

    def files(self) -> set[str]:
        """Returns the real paths of the files that rows name in the place of an image."""
        column = self.dataset.with_format("arrow")[:].column(self.image_column)
        is_absent = compute.is_null(compute.struct_field(column, "bytes"))
        paths = compute.struct_field(column, "path").cast(pa.large_binary()).filter(is_absent)
        numbers = np.flatnonzero(is_absent.to_numpy())
        return {
            os.path.realpath(os.path.join(self._folders(number)[-1], os.fsdecode(path)))
            for number, path in zip(numbers.tolist(), paths.to_pylist(), strict=True)
            if path and b"\0" not in path
        }

    @cached_property
    def _texts(self) -> Any:
        names = self.dataset.column_names
        own = self.caption_column if self.caption_column in names else self.caption_column.partition(".")[0]
        return self.dataset.select_columns([own])

    def _text_of(self, row: Mapping[str, Any]) -> str | None:
        value = look_up(row, self.caption_column)
        if self.class_names is None or value is None or value == NO_CLASS:
            return None if self.class_names is not None else as_caption(value, self.kind)
        if not 0 <= value < len(self.class_names):
            raise ValueError(f"its label {value} is out of range: there are {len(self.class_names):,} classes")
        return as_caption(self.class_names[value])

    def images(self) -> list[Hashable]:
        """Returns what identifies the image of each row, by which rows of one image are known before they are read.

        It is the path where a row names a file, the number of the first row with the same bytes where it holds the
        image itself, and None where there is no image. The list is empty where every row holds an image of its own.
        """
        column = self.dataset.with_format("arrow")[:].column(self.image_column)
        contents, paths = (compute.struct_field(column, name) for name in ("bytes", "path"))
        first_N = _first_with_the_same(contents)
        if not contents.null_count and np.array_equal(first_N, np.arange(len(first_N))):
            return []
        found: list[Hashable] = []
        # A path that is not UTF-8 costs only its own row, so that paths are compared as bytes.
        columns = (compute.is_null(contents).to_pylist(), paths.cast(pa.large_binary()).to_pylist(), first_N.tolist())
        for number, (is_absent, path, first) in enumerate(zip(*columns, strict=True)):
            if is_absent and path:
                found.append(os.path.normpath(os.path.join(os.fsencode(self._folders(number)[-1]), path)))
            else:
                found.append(None if is_absent else first)
        return found

    def _folders(self, number: int) -> Sequence[Path]:
        return self.folders[int(np.searchsorted(self.starts, number, side="right")) - 1]

    def _file(self, number: int, path: str) -> bytes:
        folders = self._folders(number)
        for folder in folders[:-1]:
            try:
                return read_input(inside(folder, path), MAX_IMAGE_BYTES)
            except (ValueError, FileNotFoundError):
                continue
        return read_input(inside(folders[-1], path), MAX_IMAGE_BYTES)


def _first_with_the_same(contents: pa.ChunkedArray) -> Integers:
    """Returns the number of the first row that holds the same bytes as each row, [N].

    Bytes are compared by hashes of 64 bits, so that one image at a time is in memory, and a few numbers for each. Were
    two images to have one hash, they would merely be on one side of the split.
    """
    hashes = (blake2b(value.as_buffer() or b"", digest_size=8).digest() for value in contents)
    hash_N = np.fromiter((int.from_bytes(one) for one in hashes), np.uint64, len(contents))
    _, first_M, place_N = np.unique(hash_N, return_index=True, return_inverse=True)
    return first_M[place_N].astype(np.int64)


def open_parquet(
    source: str,
    files: Sequence[Path],
    image_column: str | None,
    caption_column: str | None,
    text: TextColumn = CAPTIONS,
) -> tuple[TableRows, str, str]:
    """Returns the rows of Parquet files, and the image and caption columns. Raises `ConfigError` for other files.

    Files without rows are passed over, since `datasets` cannot read them. A column that a file lacks is empty there.
    """
    datasets = _datasets()
    counts = [_num_rows(path) for path in files]
    files, counts = (
        [path for path, count in zip(files, counts, strict=True) if count],
        [each for each in counts if each],
    )
    if not files:
        raise ConfigError(f"SOURCE {source} has no rows.", "Name Parquet files that hold images.")
    named = [glob.escape(os.path.abspath(path)) for path in files]  # `datasets` takes the names as patterns
    schemas = [read_schema(path) for path in files]
    try:
        dataset = _loaded(
            datasets, source, "parquet", data_files=named, split="train", features=_features(datasets, files, schemas)
        )
    except ConfigError as error:
        raise ConfigError(error.message, f"{error.hint} {_difference(files, schemas)}".strip()) from error
    starts = [0, *np.cumsum(counts).tolist()][:-1]
    folders = [[path.parent] for path in files]
    return _table(datasets, dataset, source, image_column, caption_column, starts, folders, text)


def _features(datasets: Any, files: Sequence[Path], schemas: Sequence[pa.Schema]) -> Any:
    """Returns the types of the columns of all files, or None where the first file has all columns with their types.

    `datasets` reads all files with the types of the first one. It refuses a column that only a later file has, and text
    in a column that is empty in the first. Raises `ConfigError` where one number would stand for two classes.
    """
    try:
        first, *others = [datasets.Features.from_arrow_schema(schema) for schema in schemas]
    except Exception:  # the same error is raised when the files are read, and said then
        return None
    empty, known = datasets.Value("null"), dict(first)
    for path, features in zip(files[1:], others, strict=True):
        for name, kind in features.items():
            if known.get(name, empty) == empty:
                known[name] = kind
            elif isinstance(kind, datasets.ClassLabel) and getattr(known[name], "names", kind.names) != kind.names:
                said = f"The classes of the column {name!r} in {path.name} are not those of the files before it."
                raise ConfigError(said, "Prepare the files apart, or give them one list of classes.")
    return None if known == dict(first) else datasets.Features(known)


def _difference(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> str:
    """Returns which column has another type in one file than in another, or an empty string."""
    seen: dict[str, tuple[str, pa.DataType]] = {}
    for path, schema in zip(files, schemas, strict=True):
        for field in (field for field in schema if not pa.types.is_null(field.type)):
            name, kind = seen.setdefault(field.name, (path.name, field.type))
            if field.type != kind:
                one, other = (shortened(str(each), SHOWN_CHARACTERS) for each in (kind, field.type))
                return f"The column {field.name!r} is {one} in {name}, and {other} in {path.name}."
    return ""


def open_hub(
    name: str,
    split: str,
    subset: str | None,
    image_column: str | None,
    caption_column: str | None,
    text: TextColumn = CAPTIONS,
) -> tuple[TableRows, str, str]:
    """Returns the rows and the two columns of a Hub data set. Raises `ConfigError` where the Hub does not give it."""
    datasets = _datasets()
    dataset = _loaded(datasets, name, name, name=subset, split=split)
    caches = [Path(library("huggingface_hub").constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)]
    return _table(datasets, dataset, name, image_column, caption_column, [0], [caches], text)


def _datasets() -> Any:
    datasets = library("datasets")
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # the errors that it logs are also raised
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _num_rows(path: Path) -> int:
    read_schema(path)
    return int(parquet.read_metadata(path).num_rows)


def _table(
    datasets: Any, dataset: Any, source: str, image_column: str | None, caption_column: str | None,
    starts: Sequence[int], folders: Sequence[Sequence[Path]], text: TextColumn,
) -> tuple[TableRows, str, str]:  # fmt: skip
    image = _image_column(datasets, dataset, source, image_column)
    caption = find_text_column(_columns(dataset), source, caption_column, text)
    own = caption if caption in dataset.column_names else caption.partition(".")[0]
    try:
        dataset = dataset.select_columns([image, own]).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # as pyarrow's errors are
        raise ConfigError(
            f"the column {image!r} of {source} holds no images: {first_line(error)}.",
            "Name the right one with --image-column.",
        ) from error
    if dataset.features[own] in (datasets.Value("string"), datasets.Value("large_string")):
        dataset = dataset.cast_column(own, datasets.Value("large_binary"))
    kind = dataset.features[own]
    names = kind.names if isinstance(kind, datasets.ClassLabel) else None
    return TableRows(dataset, image, caption, starts, folders, names, text), image, caption


def _columns(dataset: Any) -> list[str]:
    """Returns the names of the columns, and `column.key` for the keys inside columns of JSON."""
    inner = [f"{name}.{key}" for name, kind in dataset.features.items() if isinstance(kind, dict) for key in kind]
    return [*dataset.column_names, *inner]


def _image_column(datasets: Any, dataset: Any, source: str, given: str | None) -> str:
    columns = [str(name) for name in dataset.column_names]
    if given is not None:
        if given not in columns:
            raise ConfigError(f"--image-column {given!r} is not a column of {source}.", did_you_mean(given, columns))
        return given
    found = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    found += [name for name in IMAGE_COLUMNS if name in columns]
    if not found:
        raise ConfigError(
            f"SOURCE {source} has no column of images.", f"Name it with --image-column: {', '.join(columns)}."
        )
    return str(found[0])


def _loaded(datasets: Any, source: str, builder: str, **where: Any) -> Any:
    try:
        return datasets.load_dataset(builder, **where)
    except Exception as error:  # its loaders raise their own classes, the Hub's and the file formats'
        if builder == source:
            raise ConfigError(
                f"SOURCE {source} is no path, and the Hugging Face Hub does not give it: {first_line(error)}.",
                "Check the name and the network, or download it first and name the folder.",
            ) from error
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ConfigError(f"SOURCE {source} cannot be read: {first_line(cause)}.", "Check its files.") from error
