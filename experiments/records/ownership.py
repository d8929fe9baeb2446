"""Who works on something: claim files that also hold on a shared file system, where locks may not.

The claims on a thing are files in one folder, `00000001.held`, `00000002.held`, ...; the highest number holds. A file
appears complete and at once (a hard link), and to take over number n is to make n + 1, which only one process can. A
claim that is given back is renamed to `.free`; numbers never fall, so that a process that looked long ago cannot take
what somebody else has taken since. A holder shows that it lives by renewing the time of its file.

On the machine of the holder its process says whether it lives (`processes.py`). On another machine a claim counts as
dead when its file has not been renewed for long; that age comes from the file system's own clock (`silence_on_disk`) or
is observed on the monotonic one (`Silence`), since the clocks of machines differ and are moved.
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
from experiments.records.processes import Owner
from experiments.records.provenance import host_name
from experiments.records.storage import storage_errors

STALE_SECONDS = 600.0
"""A holder on another machine is taken for dead after this long without a sign."""
MAX_LOOKS, SECONDS_BETWEEN_LOOKS = 200, 0.05
"""A race for a claim is decided in a few looks."""
OWNER = TypeAdapter(Owner)
CLAIM_NAME = re.compile(r"([0-9]{8})\.(held|free)")
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


@dataclass(frozen=True)
class Holder:
    """Whoever holds a claim, as its file says.

    `owner` is None where the file cannot be read (yet); `trouble` is then what the system says, if it says anything: it
    is another user's, or no file. Whether such a holder lives is known from its signs alone.
    """

    number: int
    owner: Owner | None
    inode: int
    renewed_ns: int
    trouble: str | None = None

    @property
    def pulse(self) -> Hashable:
        """Changes whenever the holder gives a sign."""
        return (self.number, self.inode, self.renewed_ns)

    def is_dead(self) -> bool | None:
        """Like `Owner.is_dead`."""
        return None if self.owner is None else self.owner.is_dead()


class Silence:
    """How long things have not changed, counted from when this object first saw them, on the monotonic clock."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}

    def seconds(self, key: Hashable, pulse: Hashable) -> float:
        """Since `pulse` of `key` was first seen to be what it is now."""
        now = time.monotonic()
        before = self._seen.get(key)
        if before is None or before[0] != pulse:
            self._seen[key] = before = (pulse, now)
        return now - before[1]

    def forget(self, key: Hashable) -> None:
        """Count anew when it is seen again."""
        self._seen.pop(key, None)


class Claim:
    """A claim that this process holds."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Use `take`."""
        self._path = path
        self._descriptor: int | None = descriptor

    @property
    def folder(self) -> Path:
        """Where the claims on the same thing are."""
        return self._path.parent

    def renew(self) -> bool:
        """Show that we live; False when somebody has taken over."""
        if self._descriptor is None or not self._path.exists():
            return False
        os.utime(self._descriptor)
        return _highest(self._path.parent) == (int(self._path.stem), True)

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        if self._descriptor is None:
            return
        os.close(self._descriptor)
        self._descriptor = None
        try:
            self._path.rename(self._path.with_suffix(".free"))
        except OSError:  # taken over, or the folder is gone: there is nothing to give back
            return


def holder(folder: Path) -> Holder | None:
    """Who holds the claim of `folder`; None when nobody does. Raises `StorageError` where the folder cannot be read."""
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


def take(folder: Path, replaced: Holder | None = None, owner: Owner | None = None) -> Claim | None:
    """Hold the claim of `folder`, free until now or held by `replaced`, who is dead; None when another was first.

    Raises `StorageError` where the folder cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        number, is_held = _highest(folder)
        if is_held and (replaced is None or replaced.number != number):
            return None
        path = _held(folder, number + 1)
        if not create_once(path, json.dumps(asdict(owner or Owner.of())).encode()):
            return None
        if _highest(folder) != (number + 1, True):  # we had looked long ago: others have come and gone since
            path.unlink(missing_ok=True)
            return None
        descriptor = os.open(path, os.O_WRONLY)
        _drop_below(folder, number + 1)
        return Claim(path, descriptor)


def take_if_dead(folder: Path, stale_seconds: float = STALE_SECONDS) -> Claim | Holder:
    """Hold the claim of `folder` unless somebody lives who does: then that holder.

    For a process that looks once. Silence is counted on the file system's clock, so that clocks that differ between
    machines do no harm. Raises `StorageError` where the folder cannot be read or written.
    """
    for _ in range(MAX_LOOKS):
        found = holder(folder)
        if found is not None:
            dead = found.is_dead()
            if dead is False or (dead is None and silence_on_disk(folder, found) < stale_seconds):
                return found
        claim = take(folder, found)
        if claim is not None:
            return claim
        time.sleep(SECONDS_BETWEEN_LOOKS)  # others have come and gone, or a network file system shows what has gone
    raise StorageError(f"cannot write {folder}: its claims do not settle.", "Look at what is in it, and try again.")


def silence_on_disk(folder: Path, found: Holder) -> float:
    """Seconds since the last sign of `found`, on the clock of the file system that stamps the files of `folder`."""
    probe = folder / f".{os.getpid()}.now"
    with storage_errors(probe):
        probe.touch()
        now_ns = probe.stat().st_mtime_ns
        probe.unlink()
    return max(0.0, (now_ns - found.renewed_ns) / 1e9)


def create_once(path: Path, content: bytes) -> bool:
    """Make `path`, whole and at once, unless it is there; whether we were the one. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{host_name()}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
        return True
    except FileExistsError:  # a network file system may have lost its own answer: two names say that it was us
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _create_exclusively(path, content)
    finally:
        temporary.unlink(missing_ok=True)


def _create_exclusively(path: Path, content: bytes) -> bool:
    """For file systems without hard links; a reader may see it empty for a moment."""
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
    """Every claim of `folder` by its number, and whether it is held."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    claims = filter(None, map(CLAIM_NAME.fullmatch, names))
    return {int(claim.group(1)): claim.group(2) == "held" for claim in claims}


def _highest(folder: Path) -> tuple[int, bool]:
    return max(_numbers(folder).items(), default=(0, False))


def _drop_below(folder: Path, number: int) -> None:
    """Remove the claims of lower numbers, which mean nothing any more; one that cannot be removed does no harm."""
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
