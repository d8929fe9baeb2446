"""Keeps the parsed rows of many runs for the next command, in a folder of the reader and never in that of a run.

The rows of runs that lie beside each other are kept in a few files, so that 10,000 runs are a hundred files to open.
Which of them holds a run follows from a hash of its name: where a run is added, one of them is written anew and the
others stay. A file of rows is read again unless its path, size, times and inode are those with which it was read, and
one that has just changed is not kept, because a second change could leave all of these alike.

An entry is written beside its place and renamed, so that several readers may run at once; the last one wins, and what
the other had read is read again. Its first bytes are a checksum of the others. An entry that is damaged, cut short or
of another version of the reader counts as absent. `ECDIT_CACHE_DIR` names another folder, or is `off`.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis import read_rows, row_columns
from analysis.read_rows import ReadFile, no_rows, read_file
from analysis.row_columns import RowKind
from experiments.inputs import sha256_of_files
from experiments.records import measurement_settings, record_types, strict_reading

VARIABLE, OFF = "ECDIT_CACHE_DIR", "off"
MAX_CACHE_BYTES = 4 * 2**30
"""The size that the cache may have. Beyond it the entries go that were not used for the longest time."""
RUNS_OF_AN_ENTRY = 128
SETTLED_SECONDS = 2.0
"""A file that is younger may change again within the resolution of the times of its file system."""
ABANDONED_SECONDS = 86_400.0
"""The age at which a temporary file is one that a killed process has left."""
SUFFIX, UNFINISHED = ".rows", ".tmp"
SETTINGS = "settings"
"""The column of mappings; every other one that is no number holds texts."""
HEAD_BYTES = 12
"""A checksum of all that follows, and the length of the index."""

Stamp = list[int]
"""The size, the times of change and the inode of a file."""
Held = dict[str, tuple[Stamp, ReadFile]]
"""The rows of runs by the names of their folders."""


class CachePlace(NamedTuple):
    """An entry of the cache: the number `number` of `total` entries for the runs in one folder."""

    folder: Path
    number: int
    total: int

    def file(self, kind: RowKind) -> Path:
        """Returns the file that holds the rows of one kind."""
        return self.folder / f"{kind.__name__}-{self.number}-of-{self.total}{SUFFIX}"

    def earlier(self) -> Iterator[CachePlace]:
        """Yields the entries that held the same runs while there were fewer beside them, the latest first."""
        total = self.total // 2
        while total:
            yield CachePlace(self.folder, self.number % total, total)
            total //= 2

    def holds(self, name: str) -> bool:
        """Says whether the run of this name belongs into this entry."""
        return _number(name, self.total) == self.number


def cache_folder() -> Path | None:
    """Returns the folder of this version's entries, or None where nothing is kept."""
    named = os.environ.get(VARIABLE, "")
    if named == OFF:
        return None
    home = os.environ.get("XDG_CACHE_HOME", "")
    usual = home if os.path.isabs(home) else os.path.expanduser("~/.cache")  # as the XDG specification says
    folder = Path(named) if named else Path(usual, "ecdit")
    try:
        return folder / "rows" / _version() if folder.is_absolute() or named else None
    except OSError:  # an installation without source files
        return None


@cache
def _version() -> str:
    """Returns a hash of the source of all that decides what is read from a file: an old entry must not hide a fix."""
    modules = (read_rows, row_columns, strict_reading, record_types, measurement_settings)
    files = [Path(__file__), *(Path(module.__file__ or "") for module in modules)]
    return sha256_of_files(*files)[:16]


def places(parent: str, names: Sequence[str], folder: Path | None) -> list[CachePlace | None]:
    """Returns the entry of each run in the folder `parent`, a real path; None where nothing is kept."""
    if folder is None:
        return [None] * len(names)
    total = 1
    while len(names) > total * RUNS_OF_AN_ENTRY:
        total *= 2
    below = folder / sha256(os.fsencode(parent)).hexdigest()[:16]
    return [CachePlace(below, _number(name, total), total) for name in names]


def _number(name: str, total: int) -> int:
    return zlib.crc32(os.fsencode(name)) % total


def read_files(
    paths: Sequence[Path], kind: RowKind, place: CachePlace | None, tell: Callable[[str], None]
) -> list[ReadFile]:
    """Returns the rows of one file of each run, all of one `place`, and keeps there what was not there yet.

    `tell` is called with the reason where it cannot be kept.
    """
    if place is None:
        return [read_file(path, kind) for path in paths]
    held, is_new = _held(place, kind)
    found: list[ReadFile] = []
    for path in paths:
        stamp, name = _stamp(path), path.parent.name
        if stamp is None or name not in held or held[name][0] != stamp:
            file = read_file(path, kind)
            if stamp is not None and _is_settled(stamp) and _stamp(path) == stamp:
                held[name], is_new = (stamp, file), True
        else:
            file = held[name][1]
        found.append(ReadFile(dict(file.columns), file.left_out))
    if is_new:
        beside = paths[0].parent.parent
        kept = {name: entry for name, entry in held.items() if place.holds(name) and (beside / name).is_dir()}
        try:
            _store(place.file(kind), kept, kind)
        except OSError as error:
            tell(f"cannot write {place.folder}: {(error.strerror or str(error)).lower()}")
    return found


def _held(place: CachePlace, kind: RowKind) -> tuple[Held, bool]:
    """Returns what is kept at `place`, and whether it comes from an entry of when there were fewer runs."""
    for each in (place, *place.earlier()):
        file = each.file(kind)
        try:
            held = _decoded(file.read_bytes(), kind)
            os.utime(file)  # it was used now, and goes last
        except (OSError, ValueError):  # not there, or damaged: its files are read again
            continue
        return held, each is not place
    return {}, False


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _is_settled(stamp: Stamp) -> bool:
    return time.time() - stamp[1] / 1e9 > SETTLED_SECONDS


def _encoded(held: Held, kind: RowKind) -> bytes:
    """Returns an entry: numbers as their bytes, and texts and settings as places in a list of the different ones."""
    files = [[name, stamp, len(file.columns["images_seen"]), file.left_out] for name, (stamp, file) in held.items()]
    parts: list[bytes] = []
    texts: dict[str, list[str]] = {}
    for name, none in no_rows(kind).items():
        values = np.concatenate([none, *(file.columns[name] for _, file in held.values())])
        if none.dtype == object:
            words = map(_settings_text, values) if name == SETTINGS else values
            known: dict[str, int] = {}
            values = np.array([known.setdefault(word, len(known)) for word in words], dtype=np.int64)
            texts[name] = list(known)
        parts.append(values.tobytes())
    index = json.dumps({"files": files, "texts": texts}).encode()
    body = b"".join([len(index).to_bytes(HEAD_BYTES - 4, "little"), index, *parts])
    return zlib.crc32(body).to_bytes(4, "little") + body


def _decoded(content: bytes, kind: RowKind) -> Held:
    """Returns what an entry holds. Raises `ValueError` where it is not as it was written."""
    view = memoryview(content)
    if len(view) < HEAD_BYTES or zlib.crc32(view[4:]) != int.from_bytes(view[:4], "little"):
        raise ValueError("the entry is damaged")
    start = HEAD_BYTES + int.from_bytes(view[4:HEAD_BYTES], "little")
    index = json.loads(bytes(view[HEAD_BYTES:start]))
    ends = np.cumsum([num_rows for _, _, num_rows, _ in index["files"]]).tolist()
    columns: dict[str, Any] = {}
    for name, none in no_rows(kind).items():
        values = np.frombuffer(view, np.int64 if none.dtype == object else none.dtype, count=ends[-1], offset=start)
        start += values.nbytes
        if none.dtype == object:
            words = index["texts"][name]
            known = [json.loads(word) for word in words] if name == SETTINGS else words
            values = np.fromiter(known, dtype=object, count=len(known))[values]
        columns[name] = values
    return {
        name: (stamp, ReadFile({key: values[end - num_rows : end] for key, values in columns.items()}, left_out))
        for (name, stamp, num_rows, left_out), end in zip(index["files"], ends, strict=True)
    }


def _settings_text(settings: dict[str, Any] | None) -> str:
    return "{}" if settings == {} else json.dumps(settings)


def _store(file: Path, held: Held, kind: RowKind) -> None:
    """Replaces an entry. Nothing waits for the disk, because an entry that a crash has cut counts as absent."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}.{os.getpid()}{UNFINISHED}")
    try:
        temporary.write_bytes(_encoded(held, kind))
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def remove_old(folder: Path, max_bytes: int = MAX_CACHE_BYTES) -> None:
    """Removes the entries of all versions that were not used for the longest time, until the rest fits."""
    now, entries = time.time(), []
    for path in folder.parent.glob("*/*/*"):
        with suppress(FileNotFoundError):  # another process has removed it
            found = path.stat()
            if path.suffix == SUFFIX:
                entries.append((found.st_mtime, found.st_size, path))
            elif path.suffix == UNFINISHED and now - found.st_mtime > ABANDONED_SECONDS:
                path.unlink()
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
