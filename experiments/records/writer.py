"""Writes the records of a run from one process: it appends rows line by line and replaces the status as a whole.

A row has been handed to the system when `step`, `routing` or `evaluation` returns, so that a kill loses none of them.
The training loop writes rows before the checkpoint that covers them (see `run_lock.py`). The W&B mirror gets the same
rows after they are in the files. `record_types.py` defines names and units, and `run_folder.py` names the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from experiments.records.provenance import host_name
from experiments.records.record_types import (
    BALANCE_LOSS,
    EvalRow,
    Record,
    RoutingRow,
    RunRecord,
    State,
    Status,
    StepRow,
)
from experiments.records.routing_map_row import RoutingMapRow
from experiments.records.run_folder import RunDir, read_jsonl
from experiments.records.run_lock import FolderLock, lock_folder
from experiments.records.storage import append_line, storage_errors, write_json_atomic
from experiments.records.wandb_mirror import Mirror, Row

__all__ = [
    "RecordWriter",
    "append_evaluations",
    "append_routing_maps",
    "stored_rows",
    "write_json_atomic",
    "write_status",
]

Stored = TypeVar("Stored", bound=Record)
StartMirror = Callable[[RunRecord, RunDir], Mirror | None]


def write_status(run_dir: RunDir, status: Status) -> None:
    """Replaces `status.json` atomically and creates the folder where a run is only planned."""
    with storage_errors(run_dir.path):
        run_dir.path.mkdir(parents=True, exist_ok=True)
    write_json_atomic(run_dir.status_json, status.model_dump(mode="json", exclude_none=True))


def append_evaluations(run_dir: RunDir, rows: Sequence[EvalRow]) -> None:
    """Appends rows that were measured after training to `evals.jsonl`; other files stay as they are.

    Safe beside other processes that append. Raises `RecordError` when `run_dir` is not the folder of a run.
    """
    _append(run_dir, run_dir.evals, rows)


def append_routing_maps(run_dir: RunDir, rows: Sequence[RoutingMapRow]) -> None:
    """Appends rows that were measured after training to `routing_maps.jsonl`; other files stay as they are."""
    _append(run_dir, run_dir.routing_maps, rows)


def _append(run_dir: RunDir, path: Path, rows: Sequence[EvalRow] | Sequence[RoutingMapRow]) -> None:
    run_dir.read_run()
    with ExitStack() as files:
        append = _appender(path, files)
        # A process that was killed may have left half a line. The new row then begins on a line of its own.
        if not _ends_whole(path):
            append(b"\n")
        for row in rows:
            append(_line(row))


class RecordWriter:
    """Appends rows to the files of one run and mirrors them. Rank 0 has one; `close` it in `finally`.

    `record` is the one that holds for the run: `run.json` of its first start.
    """

    def __init__(self, run_dir: RunDir, record: RunRecord, lock: FolderLock, files: ExitStack) -> None:
        """Sets up the writer for `open`. `files` closes what it holds; `lock` is renewed with every status."""
        self.run_dir = run_dir
        self.record = record
        self._append_step = _appender(run_dir.steps, files)
        self._append_routing = _appender(run_dir.routing, files)
        self._append_evaluation = _appender(run_dir.evals, files)
        self._files = files
        self._lock = lock
        self._mirror: Mirror | None = None
        self._status: Status | None = None

    @classmethod
    def open(
        cls,
        run_dir: RunDir,
        record: RunRecord,
        images_seen: int,
        start_mirror: StartMirror | None = None,
        restart: bool = False,
    ) -> RecordWriter:
        """Locks the folder and continues its records from `images_seen` (0 without a checkpoint).

        `restart` sets the old records aside and begins anew.

        `start_mirror` (see `wandb_mirror.start_mirror`) is called once the folder is known to be this run's; the mirror
        gets the rows that are already there, so that it is whole however the last process ended. Raises `RecordError`
        for a folder of another config or of a process at work, `StorageError` when it cannot be written.
        """
        with ExitStack() as files:
            settled, held = lock_folder(run_dir, record, images_seen, restart)
            files.callback(held.release)
            writer = cls(run_dir, settled, held, files)
            if start_mirror is not None:
                today = settled.model_copy(update={"config": record.config})  # W&B settings may change between starts
                writer._mirror = start_mirror(today, run_dir)
                writer._replay()
            # From here on `close` releases the lock and the files. An error above has released them on its way out.
            writer._files = files.pop_all()
            return writer

    def step(self, row: StepRow) -> None:
        """Appends one row to `steps.jsonl`."""
        self._append_step(_line(row))
        self._show(row)

    def routing(self, rows: Sequence[RoutingRow]) -> None:
        """Appends the rows of one look at the routed layers to `routing.jsonl`."""
        for row in rows:
            self._append_routing(_line(row))
            self._show(row)

    def evaluation(self, rows: Sequence[EvalRow]) -> None:
        """Appends the values of one evaluation to `evals.jsonl`."""
        for row in rows:
            self._append_evaluation(_line(row))
            self._show(row)

    def images(self, name: str, path: Path, images_seen: int) -> None:
        """Shows an image that is already on disk (a sample grid, a routing map) in W&B under `name`."""
        if self._mirror is not None:
            self._mirror.images(name, path, images_seen)

    def status(
        self,
        state: State,
        images_seen: int,
        reason: str | None = None,
        peak_memory_gib: float | None = None,
        checkpoint_images: int | None = None,
    ) -> None:
        """Replaces `status.json` with the present time as its heartbeat and this process as its writer.

        Raises `RecordError`, and leaves the status alone, when another process has taken the run over.
        """
        # The lock comes first, so that a process that has lost the run does not overwrite its successor's status.
        self._lock.renew()
        status = Status(
            state=state,
            images_seen=images_seen,
            images_total=self.record.config["train"]["images"],
            heartbeat=time.time(),
            reason=reason,
            pid=os.getpid(),
            host=host_name(),
            peak_memory_gib=peak_memory_gib,
            checkpoint_images=checkpoint_images,
            balance_loss=BALANCE_LOSS,
        )
        write_status(self.run_dir, status)
        self._status = status

    def close(self) -> None:
        """Finishes the mirror and releases the folder; a second call does nothing."""
        if self._mirror is not None:
            last = self._status
            if last is None:
                self._mirror.close("running")
            else:
                summary = last.model_dump(include={"peak_memory_gib", "reason", "balance_loss"})
                self._mirror.close(last.state, **summary)
            self._mirror = None
        self._files.close()

    def _show(self, row: Row) -> None:
        if self._mirror is not None:
            self._mirror.row(row)

    def _replay(self) -> None:
        """Mirrors the rows of earlier processes first, since W&B takes rows only in rising order."""
        past: list[Row] = [
            *stored_rows(self.run_dir.steps, StepRow),
            *stored_rows(self.run_dir.routing, RoutingRow),
            *stored_rows(self.run_dir.evals, EvalRow),
        ]
        for row in sorted(past, key=lambda row: row.images_seen):
            self._show(row)


def stored_rows(path: Path, kind: type[Stored]) -> Iterator[Stored]:
    """Yields the rows of a file that are complete and of this version."""
    if not path.is_file():  # whoever appends to what stands there instead says what is wrong with it
        return
    for raw in read_jsonl(path).rows:
        try:
            yield kind.model_validate(raw, strict=True)
        except ValidationError:  # another version wrote it: it stays in the file, and the mirror does without it
            continue


def _appender(path: Path, files: ExitStack) -> Callable[[bytes], None]:
    """Returns a function that appends one whole line to `path`, which `files` will close."""
    with storage_errors(path):
        # Opening a FIFO in place of the file would block; with O_NONBLOCK it is an error.
        # With O_APPEND every write goes to the end, also where `ecdit evaluate` appends to the file meanwhile.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    files.callback(os.close, descriptor)
    return lambda line: append_line(descriptor, line, path)


def _line(row: Row | RoutingMapRow) -> bytes:
    """Returns a row as a line of JSON, in which a missing value is an absent key."""
    return row.model_dump_json(exclude_none=True).encode() + b"\n"


def _ends_whole(path: Path) -> bool:
    """Says whether the last line is complete; True where there is none."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
