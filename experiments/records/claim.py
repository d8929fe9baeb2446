"""Taking over a run folder before anything is written to it: same settings, one writer, no row from the future.

A run is resumed by the same command. The folder then holds `run.json` of the first start, which stays, and rows that
may reach beyond the checkpoint that training continues from, which are cut off: training writes them again, to the
last bit the same. What else is in the files stays: values that an evaluation measured, or that were imported. The
writer saves a checkpoint only after the rows up to it are written, so no row is ever missing.

Who may write is decided by a claim file (`ownership.py`), which holds on shared file systems too; a lock on `run.json`
is the second line, against whatever the first cannot know.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import RecordError
from experiments.records.layout import RunDir, parse_row
from experiments.records.ownership import STALE_SECONDS, Claim, Holder, create_once, take_if_dead
from experiments.records.schema import RunRecord
from experiments.records.storage import deleted_error, replace_atomically, set_aside, storage_errors
from experiments.settings_id import settings_id

# Sections that may change between two starts of one run; named as the difference only when nothing else differs.
FREE_SECTIONS = ("parallel", "checkpoint", "log", "wandb")
VALIDATION_METRIC = re.compile(r"(val_loss|dropped_share)(_t[0-9]|_same_t)?")
"""The metrics that only training measures."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@dataclass(frozen=True)
class FolderClaim:
    """The right of this process to write to a run's folder."""

    path: Path
    _claim: Claim
    _lock: int

    def renew(self) -> None:
        """Show that we live.

        Raises `RecordError` when another process has taken the folder over, `StorageError` when it is gone.
        """
        if not self._claim.renew():
            if not self._claim.folder.is_dir():
                raise deleted_error(self.path)
            raise RecordError(
                f"{self.path} was taken over by another process while this one gave no sign.",
                "Leave the run to the other process.",
            )

    def release(self) -> None:
        """Give the folder back."""
        os.close(self._lock)
        self._claim.release()


def claim(run_dir: RunDir, record: RunRecord, images_seen: int, restart: bool = False) -> tuple[RunRecord, FolderClaim]:
    """Make the folder ready for writing from `images_seen` on; with `restart` set aside all that the run has written.

    Returns the record that holds for this run (the first start's, where there was one) and the claim on the folder.
    Raises `RecordError` when the folder belongs to another config or another process is writing to it, `StorageError`
    when it cannot be written.
    """
    with storage_errors(run_dir.path):
        run_dir.path.mkdir(parents=True, exist_ok=True)
    settled = settle_record(run_dir, record)
    held = take_if_dead(run_dir.claims)
    if isinstance(held, Holder):
        raise _held_by(run_dir, held)
    try:
        lock = _lock(run_dir)
    except BaseException:
        held.release()
        raise
    folder_claim = FolderClaim(run_dir.path, held, lock)
    try:
        for path in written_files(run_dir) if restart else ():
            with storage_errors(path):
                set_aside(path)
        for path in (run_dir.steps, run_dir.routing, run_dir.evals):
            cut_rows(path, images_seen)
    except BaseException:
        folder_claim.release()
        raise
    return settled, folder_claim


def settle_record(run_dir: RunDir, record: RunRecord) -> RunRecord:
    """`run.json` as it was first written; `record`, newly written, where there is none yet.

    Raises `RecordError` naming the first setting that differs when the folder belongs to another config, and for a
    folder that holds records without saying of which run: they may be somebody else's.
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
            f"{run_dir.path} holds another run: {_first_difference(stored, record)}.",
            "Use the original settings to continue it, or another --run-dir.",
        )
    return stored


def keep_record(run_dir: RunDir, record: RunRecord) -> str | None:
    """Write `run.json` again where it has gone or something else has taken its place; what was done, for a person.

    Without it the run could not be read or continued. What stands there is set aside. Raises `StorageError`.
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
    """What the run has written and a new start would write anew; links that lead nowhere among it."""
    rows = (run_dir.steps, run_dir.routing, run_dir.evals, run_dir.routing_maps)
    paths = (*rows, run_dir.status_json, run_dir.checkpoints, run_dir.samples)
    return [path for path in paths if os.path.lexists(path)]


def cut_rows(path: Path, images_seen: int) -> None:
    """Leave the readable rows up to `images_seen`, byte for byte; at 0 none, because training starts over.

    Rows that training does not write again stay: values that an evaluation measured, or that were imported.
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


def _lock(run_dir: RunDir) -> int:
    """Hold `run.json`, the one file that is never replaced. The lock goes with the process, however it ends."""
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
    """Missing facts are absent; inside `config` None is a setting (no limit) and stays."""
    return {key: value for key, value in dumped.items() if value is not None}


def _first_difference(stored: RunRecord, wanted: RunRecord) -> str:
    """`seed is 0 there and 1 here`: the first setting that differs, those that change the numbers first."""
    there, here = dict(_flat(stored.config)), dict(_flat(wanted.model_dump(mode="json")["config"]))
    keys = [key for key in {**here, **there} if there.get(key) != here.get(key)]
    if not keys:
        return f"its config id is {stored.config_id}, that of these settings is {wanted.config_id}"
    key = min(keys, key=lambda name: name.split(".")[0] in FREE_SECTIONS)
    return f"{key} is {there.get(key)} there and {here.get(key)} here"


def _require_same_groups(run_dir: RunDir, stored: RunRecord, wanted: RunRecord) -> None:
    """A `RecordError` where the number of processes alone makes it another run: routing groups follow it."""
    there, here = dict(_flat(stored.config)), dict(_flat(wanted.model_dump(mode="json")["config"]))
    world = "parallel.world"
    only_the_layout = all(
        there.get(key) == here.get(key) for key in {**here, **there} if key.split(".")[0] not in FREE_SECTIONS
    )
    if only_the_layout and there.get(world) != here.get(world):
        raise RecordError(
            f"{run_dir.path} was begun with {world}={there.get(world)} and cannot go on with {world}={here.get(world)}:"
            " with routing.group_images=batch a routing group is the batch of one process, so that its losses would"
            " change.",
            f"Continue it on {there.get(world)} process(es), or use another --run-dir; with routing.group_images=1 a"
            " new run can go on with any number.",
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
