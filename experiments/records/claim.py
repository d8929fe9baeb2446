"""Taking over a run folder before anything is written to it: same settings, one writer, no row from the future.

A run is resumed by the same command. The folder then holds `run.json` of the first start, which stays, and rows that
may reach beyond the checkpoint that training continues from, which are cut off: training writes them again, to the
last bit the same. The writer saves a checkpoint only after the rows up to it are written, so no row is ever missing.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.errors import RecordError
from experiments.records.layout import RunDir, parse_row
from experiments.records.schema import RunRecord
from experiments.records.storage import replace_atomically, storage_errors, write_json_atomic

# Sections that may change between two starts of one run; named as the difference only when nothing else differs.
FREE_SECTIONS = ("parallel", "checkpoint", "log", "wandb")
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def claim(run_dir: RunDir, record: RunRecord, images_seen: int) -> tuple[RunRecord, int]:
    """Make the folder ready for writing from `images_seen` on.

    Returns the record that holds for this run (the first start's, where there was one) and the file descriptor that
    holds the lock; closing it gives the folder back. Raises `RecordError` when the folder belongs to another config or
    another process is writing to it, `StorageError` when it cannot be written.
    """
    with storage_errors(run_dir.path):
        run_dir.path.mkdir(parents=True, exist_ok=True)
    settled = settle_record(run_dir, record)
    lock = _lock(run_dir)
    try:
        for path in (run_dir.steps, run_dir.routing, run_dir.evals):
            cut_rows(path, images_seen)
    except BaseException:
        os.close(lock)
        raise
    return settled, lock


def settle_record(run_dir: RunDir, record: RunRecord) -> RunRecord:
    """`run.json` as it was first written; `record`, newly written, where there is none yet.

    Raises `RecordError` naming the first setting that differs when the folder belongs to another config.
    """
    if not run_dir.run_json.exists():
        write_json_atomic(run_dir.run_json, _without_missing(record.model_dump(mode="json")))
        return record
    stored = run_dir.read_run()
    if stored.config_id != record.config_id:
        raise RecordError(
            f"{run_dir.path} holds another run: {_first_difference(stored, record)}.",
            "Use the original settings to continue it, or another --run-dir.",
        )
    return stored


def cut_rows(path: Path, images_seen: int) -> None:
    """Leave the readable rows up to `images_seen`, byte for byte; at 0 none, because training starts over."""
    if not path.is_file():
        return
    content = path.read_bytes()
    lines = content.split(b"\n") if images_seen > 0 else []
    kept = b"".join(line + b"\n" for line in lines if _is_past(line, images_seen))
    if kept != content:
        replace_atomically(path, kept)


def _is_past(line: bytes, images_seen: int) -> bool:
    row = parse_row(line) or {}
    written_at = row.get("images_seen")
    return isinstance(written_at, int) and written_at <= images_seen


def _lock(run_dir: RunDir) -> int:
    """Hold `run.json`, the one file that is never replaced. The lock goes with the process, however it ends."""
    with storage_errors(run_dir.run_json):
        descriptor = os.open(run_dir.run_json, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        status = run_dir.read_status()
        owner = f" (process {status.pid} on {status.host})" if status is not None and status.pid is not None else ""
        raise RecordError(
            f"{run_dir.path} is being written by another process{owner}.", "Wait for it, or use another --run-dir."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:  # some network file systems have none: then the user keeps the order
            raise
    return descriptor


def _without_missing(dumped: dict[str, Any]) -> dict[str, Any]:
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


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
