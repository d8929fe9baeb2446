"""Writes files to paths that the user chose (`--out`, `--grid`), and replaces only files that ecdit itself wrote.

A folder with such files also holds a file `.made-by-ecdit` in the format of `sha256sum`: each line has a checksum and
the name of the file that had it. A file that matches its checksum may be replaced by the next command. Anything else
with the name of an output is refused before anything is written: a foreign file, one of ours that was edited since, a
link, or a folder. Every file is written under a temporary name and appears atomically.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import OutputError
from experiments.inputs import MAX_ROWS_BYTES, read_input, sha256_of_files
from experiments.records.run_folder import RunDir
from experiments.records.storage import storage_errors

MARKS = ".made-by-ecdit"


@contextmanager
def output_files(paths: Sequence[Path], root: Path | None = None) -> Iterator[list[Path]]:
    """Yields temporary names to which the caller writes `paths`, all of one folder; at the end it renames the files.

    The marks are kept in `root`, by default that folder; another one serves programs that read all its files. Raises
    `OutputError` where one of the files is not ours to replace, `StorageError` where they cannot be written; then none
    of them has changed.
    """
    folder = paths[0].parent
    root = root or folder
    require_ours(paths, root)
    parts = [path.with_name(f".{os.getpid()}.{path.name}") for path in paths]  # with its ending, which says the format
    with storage_errors(paths[0]):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield parts
            for part, path in zip(parts, paths, strict=True):
                _add_mark(root, _mark(part, path.relative_to(root)))  # before a kill can leave the file without one
                part.replace(path)
        except OSError as error:
            names = {str(part): str(path) for part, path in zip(parts, paths, strict=True)}
            error.filename = names.get(str(error.filename), error.filename)
            raise
        finally:
            for part in filter(os.path.lexists, parts):
                part.unlink()


def require_ours(paths: Sequence[Path], root: Path | None = None) -> None:
    """Raises `OutputError` where one of `paths` exists and was not written by ecdit, or was changed since."""
    for path in filter(os.path.lexists, paths):
        if not is_ours(path, root):
            raise OutputError(
                f"{path} is there already, and nothing says that ecdit wrote it as it is.",
                "Move it away, or name another place to write to.",
            )


def require_outside_runs(out: Path) -> None:
    """Raises `OutputError` where the folder `out` would lie inside that of a run, which holds its own files alone."""
    around = next((folder for folder in out.resolve().parents if RunDir(folder).run_json.is_file()), None)
    if around is not None:
        raise OutputError(f"{out} is inside the run {around}.", "Name a folder beside it.")


def is_ours(path: Path, root: Path | None = None) -> bool:
    """Says whether `path` is a file that ecdit wrote and nobody has changed since."""
    root = root or path.parent
    with storage_errors(path):
        return not path.is_symlink() and path.is_file() and _mark(path, path.relative_to(root)) in _marks(root)


def _mark(file: Path, name: Path) -> bytes:
    return f"{sha256_of_files(file)}  ".encode() + os.fsencode(name)


def _marks(root: Path) -> set[bytes]:
    try:
        return set(read_input(root / MARKS, MAX_ROWS_BYTES).split(b"\n"))
    except FileNotFoundError:
        return set()


def _add_mark(root: Path, mark: bytes) -> None:
    """Appends a line in one write, so that commands that write to one folder at once do not mix their lines."""
    if mark not in _marks(root):
        with (root / MARKS).open("ab", buffering=0) as file:
            file.write(mark + b"\n")
