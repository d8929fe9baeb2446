"""Opens Parquet files that hold images as one table, through Hugging Face `datasets`.

Only the column of images and that of their text are read. Files may lack one of them, and of other columns neither the
names nor the types matter.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from experiments.data.prepare.image_tables import (
    TableRows,
    datasets_library,
    find_columns,
    loaded,
    table_rows,
)
from experiments.data.prepare.parquet_schema import check_once, read_schema
from experiments.data.prepare.text_columns import CAPTIONS, TextColumn
from experiments.errors import ConfigError
from experiments.text import shortened

SHOWN_CHARACTERS = 80
Types = Mapping[str, Any]
"""The types of columns as `datasets` calls them, by name; None for one that it cannot hold."""


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
    datasets = datasets_library()
    schemas = {path: read_schema(path) for path in files}
    counts = {path: num for path in files if (num := int(parquet.read_metadata(path).num_rows))}
    if not counts:
        raise ConfigError(f"SOURCE {source} has no rows.", "Name Parquet files that hold images.")
    types = {path: _types(datasets, schemas[path]) for path in counts}
    known: dict[str, Any] = {}
    for of_file in types.values():
        known = _joined(datasets, known, of_file)
    columns = find_columns(datasets, known, source, image_column, caption_column, text)
    for path in counts:
        check_once(path, schemas[path].names, columns.names)
    _check_classes(datasets, types, known, columns.holding_text)
    wanted = {name: known[name] for name in columns.names}
    try:
        dataset = _read(datasets, source, counts, types, wanted)
    except ConfigError as error:
        difference = _difference(datasets, {path: schemas[path] for path in counts}, wanted)
        raise ConfigError(error.message, f"{error.hint} {difference}".strip()) from error
    starts = [0, *np.cumsum(list(counts.values())).tolist()][:-1]
    rows = table_rows(datasets, dataset, source, columns, starts, [[path.parent] for path in counts], text)
    return rows, columns.image, columns.text


def _types(datasets: Any, schema: pa.Schema) -> dict[str, Any]:
    """Returns the types of all columns. One that `datasets` cannot hold matters only where the column is read."""

    def type_of(field: pa.Field) -> Any:
        try:
            return datasets.Features.from_arrow_schema(pa.schema([field], schema.metadata))[field.name]
        except Exception:  # the same error is raised when the column is read, and said then
            return None

    return {field.name: type_of(field) for field in schema}


def _joined(datasets: Any, known: Types, more: Types) -> dict[str, Any]:
    """Returns the types of the columns, or of the keys of JSON, of both; that in `known` counts unless all is empty."""
    empty, joined = datasets.Value("null"), dict(known)
    for name, kind in more.items():
        before = joined.setdefault(name, kind)
        if before == empty:
            joined[name] = kind
        elif isinstance(before, dict) and isinstance(kind, dict):
            joined[name] = _joined(datasets, before, kind)
    return joined


def _check_classes(datasets: Any, types: Mapping[Path, Types], known: Types, column: str) -> None:
    """Raises `ConfigError` where one number in a column stands for two classes."""
    for path, of_file in types.items():
        kind = of_file.get(column)
        if isinstance(kind, datasets.ClassLabel) and getattr(known[column], "names", kind.names) != kind.names:
            said = f"The classes of the column {column!r} in {path.name} are not those of the files before it."
            raise ConfigError(said, "Prepare the files apart, or give them one list of classes.")


def _read(datasets: Any, source: str, counts: Mapping[Path, int], types: Mapping[Path, Types], wanted: Types) -> Any:
    """Returns the columns `wanted` of all files, which have these types.

    `datasets` refuses to read a column that one of several files lacks, so that files which have the same of them are
    read together, and what one lacks is filled up when they are joined.
    """
    parts = []
    for present, group in groupby(counts, lambda path: tuple(name for name in wanted if name in types[path])):
        paths = list(group)
        if not present:
            num_rows = sum(counts[path] for path in paths)
            parts.append(datasets.Dataset.from_dict({next(iter(wanted)): [None] * num_rows}))
            continue
        kinds = {name: wanted[name] for name in present}
        named = [glob.escape(os.path.abspath(path)) for path in paths]  # `datasets` takes the names as patterns
        features = None if None in kinds.values() else datasets.Features(kinds)
        where = {"data_files": named, "split": "train", "columns": list(present), "features": features}
        parts.append(loaded(datasets, source, "parquet", **where))
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _difference(datasets: Any, schemas: Mapping[Path, pa.Schema], wanted: Types) -> str:
    """Returns which column that is read has another type in one file than in another, or an empty string.

    One that cannot become the other comes first.
    """
    seen: dict[str, tuple[str, pa.DataType]] = {}
    found: list[tuple[bool, str]] = []
    for path, schema in schemas.items():
        for field in (each for each in schema if each.name in wanted and not pa.types.is_null(each.type)):
            name, kind = seen.setdefault(field.name, (path.name, field.type))
            if field.type != kind:
                one, other = (shortened(str(each), SHOWN_CHARACTERS) for each in (kind, field.type))
                said = f"The column {field.name!r} is {one} in {name}, and {other} in {path.name}."
                found.append((_can_become(datasets, field.type, wanted[field.name]), said))
    return min(found, key=itemgetter(0), default=(True, ""))[1]


def _can_become(datasets: Any, kind: pa.DataType, wanted: Any) -> bool:
    """Says whether no values of an Arrow type can be converted to a type of `datasets`."""
    try:
        datasets.table.cast_array_to_feature(pa.array([], kind), wanted)
    except (TypeError, ValueError, NotImplementedError):  # as pyarrow's errors are
        return False
    return True
