"""Reading a file that this program did not write: a config, a sweep file, the records of a run, notes of a data set.

Such a file may be anything. A FIFO blocks whoever opens it, `/dev/zero` never ends, a directory cannot be read, and a
file of many gigabytes does not fit in memory. `read_input` answers each of these with an `OSError` that says what is
wrong, so that a caller needs one `except OSError` for all of them. What the bytes mean is left to the caller.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import islice
from pathlib import Path

MAX_SETTINGS_BYTES = 16 * 2**20
"""The largest config, sweep or cluster file, status or notes file that is read. Real ones have kilobytes."""

MAX_ROWS_BYTES = 8 * 2**30
"""The largest file of rows that is read. A run of a million rows of `steps.jsonl` has 0.2 GiB."""

PIECE_BYTES = 2**20

_KINDS = (
    (stat.S_ISDIR, "it is a directory, not a file"),
    (stat.S_ISFIFO, "it is a FIFO, not a regular file"),
    (stat.S_ISSOCK, "it is a socket, not a regular file"),
    (stat.S_ISCHR, "it is a device, not a regular file"),
    (stat.S_ISBLK, "it is a device, not a regular file"),
)


def read_input(path: Path, max_bytes: int = MAX_SETTINGS_BYTES) -> bytes:
    """The bytes of the regular file at `path`.

    Raises an `OSError` whose `strerror` completes "FILE cannot be read: ..." ("it is a FIFO, not a regular file") where
    it is missing, unreadable, not a regular file, or larger than `max_bytes`. Opening never blocks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        for is_kind, reason in _KINDS:
            if is_kind(status.st_mode):
                raise OSError(errno.EINVAL, reason, str(path))
        pieces = iter(
            lambda: file.read(PIECE_BYTES), b""
        )  # read(n) would take n bytes of memory, however short the file
        num_pieces = max_bytes // PIECE_BYTES + 1
        content = b"".join(islice(pieces, num_pieces))
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes / 2**20:,.0f} MiB, the most that is read", str(path))
    return content
