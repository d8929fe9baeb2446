"""Writes files atomically, so that a reader finds the old or the new file, and reports a full disk in one line.

Everything a run replaces (run.json, status.json, a row file that is cut on resumption) goes through
`replace_atomically`; everything it writes goes through `storage_errors`. `run_folder.py` says which file holds what.
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
from experiments.records.provenance import host_name

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_FOLDER = frozenset({errno.EEXIST, errno.ENOTDIR})


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` while writing `path` into a `StorageError` that names the path and a remedy."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        if error.errno in FULL:
            hint = "Free space there and run the same command again."
        elif error.errno == errno.ENAMETOOLONG:
            hint = "Choose a shorter name."
        elif error.errno in NO_FOLDER:
            hint = "Something that is no folder stands in the place of one: move it away, or choose another folder."
        else:
            hint = "Make the folder writable, or choose another one, and run the same command again."
        raise StorageError(f"cannot write {where}: {(error.strerror or str(error)).lower()}.", hint) from error


def deleted_error(folder: Path) -> StorageError:
    """Returns the error for a run folder that was deleted while the run wrote to it."""
    return StorageError(
        f"{folder} was deleted or moved while this run wrote to it.",
        "What was written since is lost. Run the same command again, or move the folder back first.",
    )


def write_json_atomic(path: Path, payload: Mapping[str, Any]) -> None:
    """Replaces `path` atomically by `payload` as indented JSON. NaN and infinity are refused."""
    text = json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False)
    replace_atomically(path, text.encode() + b"\n")


def replace_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` atomically: after a kill or with a full disk there is the old or the new file."""
    # The temporary file lies in the same folder, because a rename is atomic only within one file system. Containers on
    # two machines often give their processes equal numbers, so that its name holds the name of the machine too.
    temporary = path.with_name(f".{path.name}.{host_name()}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            _write_synced(temporary, content)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)  # a rename survives a power cut only when the folder is synced too


def set_aside(path: Path) -> Path:
    """Renames `path` to the first free `NAME.set-aside-1`, `-2`, ... and returns the new path. Raises `OSError`."""
    names = (path.with_name(f"{path.name}.set-aside-{number}") for number in count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    path.rename(aside)
    return aside


def append_line(descriptor: int, line: bytes, path: Path) -> None:
    """Appends one whole line, unbuffered, so that a killed process loses none. `descriptor` is open with O_APPEND."""
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
    """Calls fsync on a file or a folder, so that its content or its names survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
