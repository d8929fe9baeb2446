"""Lock files, which record the process that works on a resource, on shared file systems without `flock` too.

The lock files of one resource lie in one folder: `00000001.held`, `00000002.held`, ...; the highest number is valid.
A hard link makes each file appear complete and atomically. A process takes over number n by creating n + 1, which only
one process can. A released lock is renamed to `.free`. Numbers never decrease, so that a process with an outdated
listing cannot take a lock that was taken since. A holder shows that it is alive by renewing its file's time stamp.

On the holder's machine its process shows whether it is alive (`process_identity.py`). On another machine a lock counts
as dead when its file has not been renewed for a long time. That age is measured on the file system's own clock
(`silence_on_disk`) or on the monotonic clock (`Silence`), since the clocks of machines differ and can be set.

docs/architecture.md says what this gives that filelock's and flufl.lock's leases do not.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from experiments.errors import StorageError
from experiments.inputs import read_input
from experiments.records.process_identity import Owner
from experiments.records.provenance import host_name
from experiments.records.storage import storage_errors

STALE_SECONDS = 600.0
"""A holder on another machine is taken for dead after this long without a sign."""
MAX_LOOKS, SECONDS_BETWEEN_LOOKS = 200, 0.05
"""The limits of the retries in `take_if_dead`. A race for a lock is normally decided within a few of them."""
OWNER = TypeAdapter(Owner)
LOCK_NAME = re.compile(r"([0-9]{8})\.(held|free)")
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


@dataclass(frozen=True)
class Holder:
    """Describes the holder of a lock according to its file.

    `owner` is None where the file cannot be read or parsed (yet); `trouble` then holds the system's error, if there was
    one. Whether such a holder is alive is known only from the time stamp of its file.
    """

    number: int
    owner: Owner | None
    inode: int
    renewed_ns: int
    trouble: str | None = None

    @property
    def pulse(self) -> Hashable:
        """Returns a value that changes whenever the holder renews its lock."""
        return (self.number, self.inode, self.renewed_ns)

    def is_dead(self) -> bool | None:
        """Says whether the owner is dead, as `Owner.is_dead` does; None where it is not known."""
        return None if self.owner is None else self.owner.is_dead()


class Silence:
    """Measures on the monotonic clock how long values have stayed unchanged since this object first saw them."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}

    def seconds(self, key: Hashable, pulse: Hashable) -> float:
        """Returns the seconds since `key` was first seen with its present value `pulse`."""
        now = time.monotonic()
        before = self._seen.get(key)
        if before is None or before[0] != pulse:
            self._seen[key] = before = (pulse, now)
        return now - before[1]


class LockFile:
    """Represents a lock that this process holds."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Wraps the lock file `path` and its open descriptor; callers get a lock from `take`."""
        self._path = path
        self._descriptor: int | None = descriptor

    @property
    def folder(self) -> Path:
        """Returns the folder of all locks on the same resource."""
        return self._path.parent

    def renew(self) -> bool:
        """Renews the time stamp of the lock file; returns False when another process has taken over."""
        if self._descriptor is None or not self._path.exists():
            return False
        # The descriptor is that of our own file, so that this can never renew the lock of a successor.
        os.utime(self._descriptor)
        # A higher number is the lock of a process that has taken over in the meantime.
        return _highest(self._path.parent) == (int(self._path.stem), True)

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._descriptor is None:
            return
        os.close(self._descriptor)
        self._descriptor = None
        try:
            # The file is renamed and not deleted, because the next lock must get a higher number than this one.
            self._path.rename(self._path.with_suffix(".free"))
        except OSError:  # taken over, or the folder is gone: there is nothing to give back
            return


def holder(folder: Path) -> Holder | None:
    """Returns the holder of the lock of `folder`, or None. Raises `StorageError` where the folder cannot be read."""
    with storage_errors(folder):
        number, is_held = _highest(folder)
        if not is_held:
            return None
        path = _held(folder, number)
        try:
            state = path.lstat()
        except FileNotFoundError:  # given back between the two looks
            return None
    try:
        owner, trouble = _parsed(read_input(path)), None
    except OSError as error:
        owner, trouble = None, f"{path} cannot be read: {(error.strerror or str(error)).lower()}"
    return Holder(number, owner, state.st_ino, state.st_mtime_ns, trouble)


def take(folder: Path, replaced: Holder | None = None, owner: Owner | None = None) -> LockFile | None:
    """Takes the lock of `folder` if it is free or held by `replaced`, which the caller has found to be dead.

    Returns None when another process was first. Raises `StorageError` where the folder cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        number, is_held = _highest(folder)
        if is_held and (replaced is None or replaced.number != number):
            return None
        path = _held(folder, number + 1)
        if not create_once(path, json.dumps(asdict(owner or Owner.of())).encode()):
            return None
        if _highest(folder) != (number + 1, True):  # our listing was outdated: others took and released locks since
            path.unlink(missing_ok=True)
            return None
        descriptor = os.open(path, os.O_WRONLY)
        _drop_below(folder, number + 1)
        return LockFile(path, descriptor)


def take_if_dead(folder: Path, stale_seconds: float = STALE_SECONDS) -> LockFile | Holder:
    """Takes the lock of `folder` and returns it; returns the holder instead where one is alive.

    This is meant for a process that checks once. The age of a lock is measured on the file system's clock, so that
    different clocks of machines do no harm. Raises `StorageError` where the folder cannot be read or written.
    """
    for _ in range(MAX_LOOKS):
        found = holder(folder)
        if found is not None:
            dead = found.is_dead()
            if dead is False or (dead is None and silence_on_disk(folder, found) < stale_seconds):
                return found
        lock = take(folder, found)
        if lock is not None:
            return lock
        time.sleep(SECONDS_BETWEEN_LOOKS)  # others have come and gone, or a network file system shows what has gone
    raise StorageError(
        f"cannot write {folder}: other processes keep changing its lock files.", "Look at what is in it, and try again."
    )


def silence_on_disk(folder: Path, found: Holder) -> float:
    """Returns the seconds since `found` renewed its lock, on the clock of the file system that holds `folder`."""
    probe = folder / f".{host_name()}.{os.getpid()}.now"
    with storage_errors(probe):
        # A file that is touched now gets its time from the same clock that has stamped the lock.
        probe.touch()
        now_ns = probe.stat().st_mtime_ns
        probe.unlink()
    return max(0.0, (now_ns - found.renewed_ns) / 1e9)


def create_once(path: Path, content: bytes) -> bool:
    """Creates `path` complete and atomically unless it exists, and says whether it did so. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{host_name()}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # The content is on disk before the name exists, so that nobody finds a lock without its owner.
            os.fsync(file.fileno())
        os.link(temporary, path)
        return True
    except FileExistsError:  # NFS may have lost the reply to a link that worked: then the file has two names
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _create_exclusively(path, content)
    finally:
        temporary.unlink(missing_ok=True)


def _create_exclusively(path: Path, content: bytes) -> bool:
    """Creates `path` on a file system without hard links; a reader may see it empty for a moment."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True


def _held(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.held"


def _numbers(folder: Path) -> dict[int, bool]:
    """Returns, for the number of every lock of `folder`, whether it is held."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    locks = filter(None, map(LOCK_NAME.fullmatch, names))
    return {int(lock.group(1)): lock.group(2) == "held" for lock in locks}


def _highest(folder: Path) -> tuple[int, bool]:
    return max(_numbers(folder).items(), default=(0, False))


def _drop_below(folder: Path, number: int) -> None:
    """Removes the locks below `number`, which are no longer valid; one that cannot be removed does no harm."""
    for lower in _numbers(folder):
        if lower < number:
            for suffix in (".held", ".free"):
                with suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                    _held(folder, lower).with_suffix(suffix).unlink()


def _parsed(content: bytes) -> Owner | None:
    try:
        return OWNER.validate_json(content, strict=True)
    except ValidationError:
        return None
