"""Reads files that this program did not write: configs, sweep files, records of runs, notes of data sets.

Such a file may be anything. A FIFO blocks whoever opens it, `/dev/zero` never ends, a directory cannot be read, and a
file of many gigabytes does not fit in memory. `read_input` answers each of these with an `OSError` that says what is
wrong, so that a caller needs one `except OSError` for all of them. What the bytes mean is left to the caller.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from experiments.text import shortened

MAX_SETTINGS_BYTES = 16 * 2**20
"""The largest config, sweep or cluster file, status or notes file that is read. Real ones have kilobytes."""

MAX_ROWS_BYTES = 8 * 2**30
"""The largest file of rows that is read. A run of a million rows of `steps.jsonl` has 0.2 GiB."""

PIECE_BYTES = 2**20
"""`read(n)` takes n bytes of memory however short the file is, so a file is read in pieces."""

MAX_WHOLE = 2**63 - 1
"""The largest whole number that a column of a table holds; a larger one would become another number there."""

_PLAIN = (str, bool, type(None))
_KINDS = (
    (stat.S_ISDIR, "it is a directory, not a file"),
    (stat.S_ISFIFO, "it is a FIFO, not a regular file"),
    (stat.S_ISSOCK, "it is a socket, not a regular file"),
    (stat.S_ISCHR, "it is a device, not a regular file"),
    (stat.S_ISBLK, "it is a device, not a regular file"),
)


def read_input(path: Path, max_bytes: int = MAX_SETTINGS_BYTES) -> bytes:
    """Returns the bytes of the regular file at `path`.

    Raises an `OSError` whose `strerror` completes "FILE cannot be read: ..." ("it is a FIFO, not a regular file") where
    it is missing, unreadable, not a regular file, or larger than `max_bytes`. Opening never blocks. Only a path at
    which there is nothing at all is a `FileNotFoundError`; a link that leads nowhere is another `OSError`.
    """
    with _regular_file(path) as file:
        pieces = iter(lambda: file.read(PIECE_BYTES), b"")
        content = b"".join(islice(pieces, max_bytes // PIECE_BYTES + 1))
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes / 2**20:,.0f} MiB, the most that is read", str(path))
    return content


def read_end(path: Path, num_bytes: int) -> bytes:
    """Returns the last `num_bytes` of the regular file at `path`. Raises the `OSError`s of `read_input`."""
    with _regular_file(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
        return file.read(num_bytes)


def sha256_of_files(*paths: Path) -> str:
    """Returns the SHA-256 of the concatenated contents of regular files as hex digits. Raises `OSError` for others."""
    digest = hashlib.sha256()
    for path in paths:
        with _regular_file(path) as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def parse_json(content: bytes) -> Any:
    """Returns the value of one JSON text that somebody else may have written. Raises `ValueError` with the reason.

    It is stricter than `json.loads`: a key that is there twice, NaN, infinity, a whole number of more than 64 bits,
    half a surrogate pair and nesting of more than about 200 levels are refused.
    """
    value = from_json(content, allow_inf_nan=False)
    if _num_keys(value) != content.count(b'":'):  # equal when every key is unique, unless strings contain `":` too
        json.loads(content, object_pairs_hook=unique_keys)
    return value


@contextmanager
def _regular_file(path: Path) -> Iterator[BinaryIO]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link to a file that does not exist", str(path)) from error
        raise
    mode = os.fstat(descriptor).st_mode
    reason = next((reason for is_kind, reason in _KINDS if is_kind(mode)), None)
    if reason is not None:
        os.close(descriptor)
        raise OSError(errno.EINVAL, reason, str(path))
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _num_keys(value: Any, key: str = "it") -> int:
    """Returns the number of keys in all objects of `value`. Raises `ValueError` for a number that is out of range."""
    kind = type(value)
    if kind is int and not -MAX_WHOLE <= value <= MAX_WHOLE:
        raise ValueError(f"{key}: {shortened(str(value), 20)} is more than 64 bits hold")
    if kind is float and value in (math.inf, -math.inf):
        raise ValueError(f"{key}: it is larger than any number")
    if kind is list:
        return sum([_num_keys(inner, key) for inner in value])
    if kind is not dict:
        return 0
    # A call for each text, truth value and null would take longer than parsing them.
    return len(value) + sum([_num_keys(inner, name) for name, inner in value.items() if type(inner) not in _PLAIN])


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dict of pairs for `json`'s `object_pairs_hook`. Raises `ValueError` where a key occurs twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return value
