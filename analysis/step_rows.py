"""A fast reader of `steps.jsonl`, several times faster than a JSON parser.

It relies on all lines having the same keys and only numbers as values. Then every colon ends a key, and every comma or
closing brace ends a number. Cutting the file at these positions gives texts that alternate between separators
(`,"loss":`, or `}`, a newline and `{"images_seen":`) and numbers. Arrow takes the bytes and the positions as an array
of strings, without copying them and without holding Python's interpreter lock. The array is built twice. With the
separators masked as null, Arrow casts the numbers to float64, exactly. With the numbers masked, the separators must
equal, to the byte, those which these keys and this number of rows give. Any other file (a truncated line, a null, a
text, changing keys, blanks) is left to `rows.py`, which reads it with the general parser.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic_core import from_json

Numbers = dict[str, NDArray[np.float64]]
Positions = NDArray[np.int64]

COLON, COMMA, BRACE = b":,}"
BETWEEN, NUMBERS = 0b01010101, 0b10101010
"""Arrow validity bitmaps, lowest bit first: `BETWEEN` keeps the separators (1st, 3rd, ...), `NUMBERS` the numbers."""


def same_keys_columns(content: bytes) -> Numbers | None:
    """Returns the values of each key over all lines, or None where the lines are not all numbers under equal keys."""
    try:
        keys = tuple(from_json(content.partition(b"\n")[0]))
        bounds = _bounds(content)
        num_rows, rest = divmod(len(bounds) // 2, len(keys))
        if rest or content[bounds[-1] :] not in (b"}", b"}\n"):
            return None
        if not _texts(content, bounds, BETWEEN).equals(_between(keys, num_rows)):
            return None
        numbers = _texts(content, bounds, NUMBERS).cast(pa.float64())
    except (ValueError, TypeError, ZeroDivisionError, pa.ArrowInvalid):
        return None  # Not silent: `rows.py` reads every line again and counts what it cannot use.
    every_second = np.frombuffer(numbers.buffers()[1], dtype=np.float64, count=len(numbers))[1::2]
    return dict(zip(keys, every_second.reshape(num_rows, len(keys)).T.copy(), strict=True))


def _bounds(content: bytes) -> Positions:
    """Returns the offsets at which the texts begin, and where the last ends.

    A number begins after a colon, and a separator begins at a comma or a closing brace.
    """
    byte = np.frombuffer(content, dtype=np.uint8)
    marks = np.flatnonzero((byte == COLON) | (byte == COMMA) | (byte == BRACE))
    bounds = np.zeros(len(marks) + 1, dtype=np.int64)
    bounds[1:] = marks
    bounds[1::2] += 1  # a colon ends the separator before a number, so the number begins one byte later
    return bounds


def _texts(content: bytes, bounds: Positions, which: int) -> pa.LargeStringArray:
    """Returns the texts of `content` between `bounds`; the bitmap `which` masks every second one as null."""
    num_texts = len(bounds) - 1
    there = pa.py_buffer(bytes([which]) * (num_texts // 8 + 1))
    return pa.Array.from_buffers(pa.large_string(), num_texts, [there, pa.py_buffer(bounds), pa.py_buffer(content)])


@lru_cache(maxsize=64)
def _between(keys: tuple[str, ...], num_rows: int) -> pa.LargeStringArray:
    """Returns the expected separators of `num_rows` lines with these keys, with nulls in place of the numbers."""
    later = [text for key in keys[1:] for text in (f',"{key}":', None)]
    first = f'{{"{keys[0]}":'
    first_line, other_line = [first, None, *later], ["}\n" + first, None, *later]
    return pa.array(first_line + other_line * (num_rows - 1), pa.large_string())
