"""Takes over a run folder before training writes to it.

Taking over checks that the folder belongs to the same settings, makes sure that there is only one writer, and cuts off
the rows that lie beyond the checkpoint from which training continues.

A run is resumed by the same command. The `run.json` of the first start then stays. Rows beyond the checkpoint are cut
off because training writes them again, bit for bit. Other rows stay: values that an evaluation measured, or that were
imported. The writer saves a checkpoint only after the rows up to it are written, so no row is ever missing.

A lock file (`lock_file.py`), which also works on shared file systems, decides who may write. A lock of the operating
system (`flock`) on `run.json` is the second safeguard. It holds where a lock file is deleted by hand, or where its
holder is taken for dead although it is only slow, and it ends with the process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import RecordError
from experiments.records.lock_file import STALE_SECONDS, Holder, LockFile, create_once, take_if_dead
from experiments.records.record_types import RunRecord
from experiments.records.run_folder import RunDir, parse_row
from experiments.records.same_plugins import require_same_plugins
from experiments.records.storage import deleted_error, replace_atomically, set_aside, storage_errors
from experiments.settings_id import dotted, settings_id

# Sections that may change between two starts of one run. They are reported as the difference only if no other differs.
FREE_SECTIONS = ("parallel", "checkpoint", "log", "wandb")
VALIDATION_METRIC = re.compile(
    r"(val_loss|velocity_error|dropped_share|executed_flops_per_image)(_same_t|_training_decision)?(_t[0-9])?"
)
"""Matches the metrics that only training measures."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@dataclass(frozen=True)
class FolderLock:
    """The lock by which this process alone may write to a run's folder."""

    path: Path
    _lock: LockFile
    _descriptor: int

    def renew(self) -> None:
        """Renews the time stamp by which other processes see that this one is alive.

        Raises `RecordError` when another process has taken the folder over, `StorageError` when the folder is gone.
        """
        if not self._lock.renew():
            if not self._lock.folder.is_dir():
                raise deleted_error(self.path)
            raise RecordError(
                f"{self.path} was taken over by another process while this one gave no sign.",
                "Leave the run to the other process.",
            )

    def release(self) -> None:
        """Releases the folder, so that another process can lock it."""
        os.close(self._descriptor)
        self._lock.release()


def lock_folder(
    run_dir: RunDir, record: RunRecord, images_seen: int, restart: bool = False
) -> tuple[RunRecord, FolderLock]:
    """Prepares the folder for writing from `images_seen` on; `restart` first sets aside what the run has written.

    Returns the record of this run (that of the first start, if there was one) and the lock on the folder.
    Raises `RecordError` when the folder belongs to another config or another process is writing to it, `StorageError`
    when it cannot be written.
    """
    with storage_errors(run_dir.path):
        run_dir.path.mkdir(parents=True, exist_ok=True)
    # The settings are compared before the lock is taken, so that a folder of another run is left as it is.
    settled = settle_record(run_dir, record)
    held = take_if_dead(run_dir.locks)
    if isinstance(held, Holder):
        raise _held_by(run_dir, held)
    try:
        descriptor = _lock_record(run_dir)
    # Ctrl-C counts too: a lock left behind would make other machines wait until it counts as dead.
    except BaseException:
        held.release()
        raise
    folder_lock = FolderLock(run_dir.path, held, descriptor)
    try:
        # Files are set aside and rows are cut only under the lock, because another writer could be appending to them.
        for path in written_files(run_dir) if restart else ():
            with storage_errors(path):
                set_aside(path)
        for path in (run_dir.steps, run_dir.routing, run_dir.evals):
            cut_rows(path, images_seen)
    except BaseException:
        folder_lock.release()
        raise
    return settled, folder_lock


def settle_record(run_dir: RunDir, record: RunRecord) -> RunRecord:
    """Returns the record in `run.json` as it was first written; where there is none, writes and returns `record`.

    Raises `RecordError` when the folder belongs to another config, naming the first setting that differs. It also
    raises `RecordError` for a folder with records but without `run.json`: they may belong to another run.
    """
    if not os.path.lexists(run_dir.run_json):
        others = [path.name for path in written_files(run_dir) if path != run_dir.status_json]  # a plan has a status
        if others:
            raise RecordError(
                f"{run_dir.path} holds {', '.join(others)} and no {run_dir.run_json.name}: it is not known to be of "
                "this run.",
                f"Use another --run-dir, or bring {run_dir.run_json.name} back.",
            )
        if _create_record(run_dir, record):  # of two first starts at once, one makes the file and both keep to it
            return record
    stored = run_dir.read_run()
    if settings_id(stored.config) != record.config_id:  # an earlier version's id did not count the processes
        _require_same_groups(run_dir, stored, record)
        raise RecordError(
            f"{run_dir.path} holds another run: {first_difference(stored, record)}.",
            "Use the original settings to continue it, or another --run-dir.",
        )
    require_same_plugins(stored, record.plugins, run_dir.run_json)
    return stored


def keep_record(run_dir: RunDir, record: RunRecord) -> str | None:
    """Writes `run.json` again where it is missing, unreadable or of another run, and returns a message about it.

    Without this file the run could not be read or continued. A file that is in its place is set aside. Returns None
    where nothing had to be done. Raises `StorageError` where the file cannot be written.
    """
    try:
        if run_dir.read_run().config_id == record.config_id:
            return None
        reason = "it was of another run"
    except RecordError as error:
        reason = error.message
    with storage_errors(run_dir.run_json):
        aside = set_aside(run_dir.run_json) if os.path.lexists(run_dir.run_json) else None
    _create_record(run_dir, record)
    kept = f"; what stood there is now {aside.name}" if aside is not None else ""
    return f"Wrote {run_dir.run_json} again: {reason.removesuffix('.')}{kept}."


def _create_record(run_dir: RunDir, record: RunRecord) -> bool:
    text = json.dumps(without_missing(record.model_dump(mode="json")), indent=2, ensure_ascii=False)
    with storage_errors(run_dir.run_json):
        return create_once(run_dir.run_json, text.encode() + b"\n")


def written_files(run_dir: RunDir) -> list[Path]:
    """Returns the paths that the run has written and a restart would write again, including dangling links."""
    rows = (run_dir.steps, run_dir.routing, run_dir.evals, run_dir.routing_maps)
    paths = (*rows, run_dir.status_json, run_dir.checkpoints, run_dir.samples)
    return [path for path in paths if os.path.lexists(path)]


def cut_rows(path: Path, images_seen: int) -> None:
    """Removes from the file `path` the rows beyond `images_seen` and unreadable rows; all others stay byte for byte.

    At `images_seen` 0 all rows of training go, because it starts over. Rows that training does not write again always
    stay: values that an evaluation measured, or that were imported.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    kept = b"".join(line + b"\n" for line in content.split(b"\n") if _is_kept(line, images_seen))
    if kept != content:
        replace_atomically(path, kept)


def _is_kept(line: bytes, images_seen: int) -> bool:
    row = parse_row(line) or {}
    metric, written_at = row.get("metric"), row.get("images_seen")
    if isinstance(metric, str) and not VALIDATION_METRIC.fullmatch(metric) and not row.get("while_training"):
        return True
    return isinstance(written_at, int) and images_seen > 0 and written_at <= images_seen


def _lock_record(run_dir: RunDir) -> int:
    """Locks `run.json` and returns its descriptor. The operating system releases the lock when the process ends.

    The lock belongs to an inode, and `run.json` is the one file of the folder that no write replaces by another.
    """
    with storage_errors(run_dir.run_json):
        descriptor = os.open(run_dir.run_json, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise _held_by(run_dir, None) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:  # some network file systems have none: then the user keeps the order
            raise
    return descriptor


def _held_by(run_dir: RunDir, holder: Holder | None) -> RecordError:
    status = run_dir.read_status()
    who = None if holder is None else holder.trouble or holder.owner
    if who is None and status is not None and status.pid is not None:
        who = f"process {status.pid} on {status.host}"
    no_process = " If no process works there, remove that file." if holder is not None and holder.trouble else ""
    return RecordError(
        f"{run_dir.path} is being written by another process{'' if who is None else f' ({who})'}.",
        f"Wait for it, or use another --run-dir. On another machine it counts as lost {STALE_SECONDS:.0f} s after its "
        f"last sign.{no_process}",
    )


def without_missing(dumped: dict[str, Any]) -> dict[str, Any]:
    """Returns `dumped` without top-level None values; inside `config`, None is a setting (no limit) and stays."""
    return {key: value for key, value in dumped.items() if value is not None}


def first_difference(stored: RunRecord, wanted: RunRecord) -> str:
    """Returns, as `seed is 0 there and 1 here`, the first setting that differs; those that change results go first."""
    there, here = dict(dotted(stored.config)), dict(dotted(wanted.model_dump(mode="json")["config"]))
    keys = [key for key in {**here, **there} if there.get(key) != here.get(key)]
    if not keys:
        return f"its config id is {stored.config_id}, that of these settings is {wanted.config_id}"
    key = min(keys, key=lambda name: name.split(".")[0] in FREE_SECTIONS)
    return f"{key} is {there.get(key)} there and {here.get(key)} here"


def _require_same_groups(run_dir: RunDir, stored: RunRecord, wanted: RunRecord) -> None:
    """Raises `RecordError` where only the number of processes makes it another run, as routing groups depend on it."""
    there, here = dict(dotted(stored.config)), dict(dotted(wanted.model_dump(mode="json")["config"]))
    world = "parallel.world"
    only_the_layout = all(
        there.get(key) == here.get(key) for key in {**here, **there} if key.split(".")[0] not in FREE_SECTIONS
    )
    if only_the_layout and there.get(world) != here.get(world):
        raise RecordError(
            f"{run_dir.path} was begun with {world}={there.get(world)} and cannot go on with {world}={here.get(world)}:"
            " its routing groups, thresholds or losses of routing follow the images that processes take at a time, so"
            " that its losses would change.",
            f"Continue it on {there.get(world)} process(es), or use another --run-dir; with routing.group_images=1 a"
            " new run of most routers can go on with any number.",
        )
