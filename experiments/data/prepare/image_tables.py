"""Reads tables that hold images through Hugging Face `datasets`: data sets of the Hub, and the rows of Parquet files.

`datasets` converts them once and maps them into memory. An image is given as bytes or as a path. Paths come from
whoever wrote the table, so only those inside the table's folder or the Hub's cache are opened. Text is read as bytes
and decoded here row by row, so that bytes that are not UTF-8 cost only their own row.

Legend: N rows, M different images.
"""

from __future__ import annotations

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
from pyarrow import compute

from experiments.data.order import Integers
from experiments.data.prepare.folders import inside
from experiments.data.prepare.path_tables import find_text_column
from experiments.data.prepare.source_rows import MAX_IMAGE_BYTES, Row, as_caption, listed_as, look_up
from experiments.data.prepare.text_columns import CAPTIONS, TextColumn
from experiments.errors import ConfigError, did_you_mean
from experiments.inputs import read_input
from experiments.libraries import library
from experiments.text import first_line

IMAGE_COLUMNS = ("image", "jpg", "png", "jpeg")
"""Names of image columns, used where no column has the type of images."""
NO_CLASS = -1
"""The label of images whose class is not known, as `datasets` writes it for test splits."""


@dataclass(frozen=True)
class ReadColumns:
    """Names the columns of a table that are read: that of images and that of text."""

    image: str
    text: str
    """The column of text, or a column of JSON with a dot and the key in it."""
    holding_text: str
    """The column of text without a key."""

    @property
    def names(self) -> list[str]:
        """Returns each of the columns once."""
        return list(dict.fromkeys((self.image, self.holding_text)))


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


def open_hub(
    name: str,
    split: str,
    subset: str | None,
    image_column: str | None,
    caption_column: str | None,
    text: TextColumn = CAPTIONS,
) -> tuple[TableRows, str, str]:
    """Returns the rows and the two columns of a Hub data set. Raises `ConfigError` where the Hub does not give it."""
    datasets = datasets_library()
    dataset = loaded(datasets, name, name, name=subset, split=split)
    columns = find_columns(datasets, dataset.features, name, image_column, caption_column, text)
    caches = [Path(library("huggingface_hub").constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)]
    rows = table_rows(datasets, dataset, name, columns, [0], [caches], text)
    return rows, columns.image, columns.text


def datasets_library() -> Any:
    """Imports `datasets`, quiet. Raises `ConfigError` where it is not installed."""
    datasets = library("datasets")
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # the errors that it logs are also raised
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def find_columns(
    datasets: Any,
    types: Mapping[str, Any],
    source: str,
    image_column: str | None,
    caption_column: str | None,
    text: TextColumn,
) -> ReadColumns:
    """Returns which columns of a table are read. Raises `ConfigError` where one is missing."""
    image = _image_column(datasets, types, source, image_column)
    keys = [f"{name}.{key}" for name, kind in types.items() if isinstance(kind, dict) for key in kind]
    caption = find_text_column([*types, *keys], source, caption_column, text)
    return ReadColumns(image, caption, caption if caption in types else caption.partition(".")[0])


def table_rows(
    datasets: Any, dataset: Any, source: str, columns: ReadColumns, starts: Sequence[int],
    folders: Sequence[Sequence[Path]], text: TextColumn,
) -> TableRows:  # fmt: skip
    """Returns the rows of a data set. Raises `ConfigError` where the column of images holds none."""
    image, own = columns.image, columns.holding_text
    try:
        dataset = dataset.select_columns(columns.names).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # as pyarrow's errors are
        is_list = isinstance(dataset.features[image], datasets.List | datasets.LargeList)
        said = "it holds lists" if is_list else first_line(error)
        raise ConfigError(
            f"the column {image!r} of {source} holds no images: {said}.",
            "Name the right one with --image-column.",
        ) from error
    if dataset.features[own] in (datasets.Value("string"), datasets.Value("large_string")):
        dataset = dataset.cast_column(own, datasets.Value("large_binary"))
    kind = dataset.features[own]
    names = kind.names if isinstance(kind, datasets.ClassLabel) else None
    return TableRows(dataset, image, columns.text, starts, folders, names, text)


def loaded(datasets: Any, source: str, builder: str, **where: Any) -> Any:
    """Returns what `datasets.load_dataset` does for `where`. Raises `ConfigError` where it cannot."""
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


def _image_column(datasets: Any, types: Mapping[str, Any], source: str, given: str | None) -> str:
    columns = [str(name) for name in types]
    if given is not None:
        if given not in columns:
            raise ConfigError(f"--image-column {given!r} is not a column of {source}.", did_you_mean(given, columns))
        return given
    found = [name for name, kind in types.items() if isinstance(kind, datasets.Image)]
    found += [name for name in IMAGE_COLUMNS if name in columns]
    if not found:
        raise ConfigError(
            f"SOURCE {source} has no column of images.", f"Name it with --image-column: {', '.join(columns)}."
        )
    return str(found[0])
