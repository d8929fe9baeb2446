"""One `steps.jsonl` as columns, several times faster than as JSON: what a run has written is CSV in disguise.

The lines of a run all have the same keys and only numbers. With a comma for each colon and for the last brace, the line
`{"images_seen":16,"loss":0.4}` is the CSV row `{"images_seen",16,"loss",0.4,` of which Arrow takes the numbers, exactly
and without holding Python's lock. The keys of every row are compared, and a row without its brace lacks the empty cell
at the end. A file that is anything else (a cut line, a null, a text, keys that change) is left to `rows.py`, which
reads it line by line.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

Numbers = dict[str, NDArray[np.float64]]

TO_CSV = bytes(ord(",") if byte in b":}" else byte for byte in range(256))
AS_WRITTEN = csv.ParseOptions(quote_char=False)
END = ""
"""The empty cell after the last brace."""


def same_keys_columns(content: bytes) -> Numbers | None:
    """The numbers by key, of all lines of `content`; None where they are not all numbers under the same keys."""
    try:
        keys = tuple(json.loads(content.partition(b"\n")[0]))
        table = _read_csv(content.translate(TO_CSV), keys)
        if not all(_is_everywhere(written, table) for written in _written(keys)):
            return None
        return {key: table[key].chunk(0).to_numpy(zero_copy_only=True) for key in keys}
    except (ValueError, TypeError, pa.ArrowInvalid):
        return None  # Not silent: `rows.py` reads every line again and counts what it cannot use.


def _read_csv(rows: bytes, keys: tuple[str, ...]) -> pa.Table:
    """Two columns for each key, the key as it stands in the row and the number, and one for the end."""
    names, conversion = _columns(keys)
    block = csv.ReadOptions(use_threads=False, column_names=names, block_size=len(rows) + 1)
    return csv.read_csv(pa.BufferReader(rows), block, AS_WRITTEN, conversion)


@lru_cache
def _columns(keys: tuple[str, ...]) -> tuple[list[str], csv.ConvertOptions]:
    types: dict[str, pa.DataType] = {}
    for written, key in zip(_written(keys), keys, strict=True):
        types |= {written: pa.binary(len(written.encode())), key: pa.float64()}
    types[END] = pa.null()
    return list(types), csv.ConvertOptions(column_types=types, null_values=[""])


def _written(keys: tuple[str, ...]) -> list[str]:
    return [f'{"" if i else "{"}"{key}"' for i, key in enumerate(keys)]


def _is_everywhere(written: str, table: pa.Table) -> bool:
    """Whether this key stands in every row: its column is of fixed width, so that its cells lie end to end."""
    cells = table[written].chunk(0)
    expected = written.encode() * len(cells)
    return bool(cells.null_count == 0 and cells.buffers()[1].to_pybytes()[: len(expected)] == expected)
