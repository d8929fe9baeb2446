"""Writing so that a file is either the old one or the new one, and a full disk is one clear line.

Everything a run replaces (run.json, status.json, a row file that is cut on resumption) goes through
`replace_atomically`; everything it writes goes through `storage_errors`. Which file holds what is `layout.py`'s.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from experiments.errors import StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` while writing `path` into a `StorageError` that names it and the way out."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        if error.errno in FULL:
            hint = "Free space there and run the same command again."
        elif error.errno == errno.ENAMETOOLONG:
            hint = "Choose a shorter name."
        else:
            hint = "Make the folder writable, or choose another one, and run the same command again."
        raise StorageError(f"cannot write {where}: {(error.strerror or str(error)).lower()}.", hint) from error


def deleted_error(folder: Path) -> StorageError:
    """What to raise where the folder of a run has gone while the run wrote to it."""
    return StorageError(
        f"{folder} was deleted or moved while this run wrote to it.",
        "What was written since is lost. Run the same command again, or move the folder back first.",
    )


def write_json_atomic(path: Path, payload: Mapping[str, Any]) -> None:
    """Replace `path` by `payload` as indented JSON. NaN and infinity are refused."""
    text = json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False)
    replace_atomically(path, text.encode() + b"\n")


def replace_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader, a kill or a full disk at any moment finds the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            _write_synced(temporary, content)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def set_aside(path: Path) -> Path:
    """Rename `path` to the first free `NAME.set-aside-1`, `-2`, ... beside it, and return that. Raises `OSError`."""
    names = (path.with_name(f"{path.name}.set-aside-{number}") for number in count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    path.rename(aside)
    return aside


def append_line(descriptor: int, line: bytes, path: Path) -> None:
    """Append one whole line; it has left the process when this returns. `descriptor` is open with O_APPEND."""
    with storage_errors(path):
        written = os.write(descriptor, line)
        while written < len(line):  # a disk that fills up takes a part first, and says so on the next call
            written += os.write(descriptor, line[written:])


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
