"""One `steps.jsonl` as columns, several times faster than as JSON: its lines all have the same keys and only numbers.

Every colon ends a key and every comma and closing brace ends a number, so that two neighbouring positions of these
enclose a number or what stands between two numbers: `,"loss":`, or `}`, the end of the line and `{"images_seen":`.
Arrow takes the bytes and the positions as an array of texts, without a copy and without Python's lock. Once with the
numbers alone: they are converted, exactly. Once with what stands between: it must be, to the byte, what these keys and
this number of rows make. A file that is anything else (a cut line, a null, a text, keys that change, blanks) is left to
`rows.py`, which reads it line by line.
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
"""Which texts are there, as Arrow's bits, the lowest first: what stands between numbers is the first, third, ..."""


def same_keys_columns(content: bytes) -> Numbers | None:
    """The numbers by key, of all lines of `content`; None where they are not all numbers under the same keys."""
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
    """Where the texts begin, and where the last ends: after a colon, and at a comma or closing brace."""
    byte = np.frombuffer(content, dtype=np.uint8)
    marks = np.flatnonzero((byte == COLON) | (byte == COMMA) | (byte == BRACE))
    bounds = np.zeros(len(marks) + 1, dtype=np.int64)
    bounds[1:] = marks
    bounds[1::2] += 1
    return bounds


def _texts(content: bytes, bounds: Positions, which: int) -> pa.LargeStringArray:
    """The texts of `content` between `bounds`, with every second missing."""
    num_texts = len(bounds) - 1
    there = pa.py_buffer(bytes([which]) * (num_texts // 8 + 1))
    return pa.Array.from_buffers(pa.large_string(), num_texts, [there, pa.py_buffer(bounds), pa.py_buffer(content)])


@lru_cache(maxsize=64)
def _between(keys: tuple[str, ...], num_rows: int) -> pa.LargeStringArray:
    """What stands between the numbers of `num_rows` lines, with the numbers missing."""
    later = [text for key in keys[1:] for text in (f',"{key}":', None)]
    first = f'{{"{keys[0]}":'
    first_line, other_line = [first, None, *later], ["}\n" + first, None, *later]
    return pa.array(first_line + other_line * (num_rows - 1), pa.large_string())
