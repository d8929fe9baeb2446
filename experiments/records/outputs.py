"""Files that a command writes where its user says (`--out`, `--grid`): nothing but what ecdit wrote is replaced.

A folder that such files were written to has a file `.made-by-ecdit`, in the format of `sha256sum`: on each line a
checksum and the name of the file that had it. What stands there with its checksum is ours, and the next command
replaces it. Whatever else has the name of an output is refused before anything is written: a file of somebody else, one
of ours that somebody has edited, a link, a folder. Every file is written under another name and appears whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import OutputError
from experiments.inputs import MAX_ROWS_BYTES, read_input
from experiments.records.storage import storage_errors

MARKS = ".made-by-ecdit"


@contextmanager
def output_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Inside, the caller writes `paths`, all of one folder, under the names that this gives; at the end they are there.

    Raises `OutputError` where one of them is not ours to replace, `StorageError` where they cannot be written; then
    none of them has changed.
    """
    require_ours(paths)
    folder = paths[0].parent
    parts = [path.with_name(f".{os.getpid()}.{path.name}") for path in paths]  # with its ending, which says the format
    with storage_errors(paths[0]):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield parts
            for part, path in zip(parts, paths, strict=True):
                _add_mark(folder, _mark(part, path.name))  # first: after a kill in between the file can be replaced
                part.replace(path)
        except OSError as error:
            names = {str(part): str(path) for part, path in zip(parts, paths, strict=True)}
            error.filename = names.get(str(error.filename), error.filename)
            raise
        finally:
            for part in filter(os.path.lexists, parts):
                part.unlink()


def require_ours(paths: Sequence[Path]) -> None:
    """Raise `OutputError` where one of `paths` is there and was not written by ecdit, or was changed since."""
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        if not is_ours(path):
            raise OutputError(
                f"{path} is there already, and nothing says that ecdit wrote it as it is.",
                "Move it away, or name another place to write to.",
            )


def is_ours(path: Path) -> bool:
    """Whether `path` is a file just as ecdit wrote it."""
    with storage_errors(path):
        return not path.is_symlink() and path.is_file() and _mark(path, path.name) in _marks(path.parent)


def _mark(file: Path, name: str) -> bytes:
    with file.open("rb") as content:
        return f"{hashlib.file_digest(content, 'sha256').hexdigest()}  ".encode() + os.fsencode(name)


def _marks(folder: Path) -> set[bytes]:
    try:
        return set(read_input(folder / MARKS, MAX_ROWS_BYTES).split(b"\n"))
    except FileNotFoundError:
        return set()


def _add_mark(folder: Path, mark: bytes) -> None:
    """Append a line, in one piece, so that commands that write to one folder at once do not disturb each other."""
    if mark not in _marks(folder):
        with (folder / MARKS).open("ab", buffering=0) as file:
            file.write(mark + b"\n")
