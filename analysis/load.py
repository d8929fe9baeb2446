"""Run folders to frames: `runs`, `steps`, `evals` and `routing`, with a list of everything that was left out.

Only finished runs enter the frames. A run that is unfinished, failed or damaged, a line that was cut and a row with a
number that is not finite are left out, counted and listed in `Records.left_out`; nothing disappears silently. Runs
of another schema version are refused. Whether the runs may be compared is said by `comparable.py`, which runs form one
arm by `arms.py`.

Frames (one row each per): `runs` a run, the settings as dotted columns (`routing.name`); `steps` a `StepRow`; `evals`
an `EvalRow`; `routing` a `RoutingRow`. All carry `run`, the folder as text, which joins them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.rows import RowTable, read_table
from experiments.errors import EcditError, RecordError
from experiments.records.layout import RunDir, find_runs
from experiments.records.schema import SCHEMA_VERSION, EvalRow, RoutingRow, RunRecord, StepRow

MIN_RUNS_FOR_PROCESSES = 400
"""Starting processes costs about a second: below this many runs one process is faster."""

RECORD_COLUMNS = [name for name in RunRecord.model_fields if name not in {"config", "params_by_part", "versions"}]


class MissingDataError(EcditError):
    """The runs do not hold what a figure or a table needs."""


@dataclass(frozen=True)
class LeftOut:
    """Something that is not in the frames, and why."""

    run: str
    reason: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.run}: {self.reason}"


@dataclass(frozen=True)
class Records:
    """The frames of the finished runs, and what was left out of them."""

    runs: pd.DataFrame
    steps: pd.DataFrame
    evals: pd.DataFrame
    routing: pd.DataFrame
    left_out: tuple[LeftOut, ...]


def load_records(roots: Sequence[Path]) -> Records:
    """The finished runs at or below `roots`, duplicates once.

    A `RecordError` when a root does not exist, when no finished run is found, or when schema versions are mixed.
    """
    dirs = _existing_runs(roots)
    left_out: list[LeftOut] = []
    finished: list[tuple[RunDir, RunRecord]] = []
    for run in dirs:
        record = _finished_record(run)
        if isinstance(record, RunRecord):
            finished.append((run, record))
        else:
            left_out.append(record)
    finished, copies = _without_copies(finished)
    if not finished:
        reasons = "; ".join(map(str, left_out[:3])) + ("; ..." if len(left_out) > 3 else "")
        raise RecordError(f"None of the {len(dirs)} runs is finished ({reasons}).", "Re-run its command to continue.")
    steps, evals, routing = _read_tables([run for run, _ in finished])
    rows_left_out = [*steps.left_out, *evals.left_out, *routing.left_out]
    left_out += copies + [LeftOut(run, reason) for run, reason in rows_left_out]
    runs = pd.DataFrame([_run_row(run, record) for run, record in finished])
    return Records(runs, steps.frame, evals.frame, routing.frame, tuple(left_out))


def _existing_runs(roots: Sequence[Path]) -> list[RunDir]:
    for root in roots:
        if not root.is_dir():
            raise RecordError(f"{root} is not a folder.", "Name the folder of a run or of a sweep.")
    dirs = list(find_runs(*roots))
    if not dirs:
        where = ", ".join(map(str, roots))
        raise RecordError(f"No runs at or below {where}.", "Make some with: ecdit sweep quickstart --out out/demo")
    return dirs


def _finished_record(run: RunDir) -> RunRecord | LeftOut:
    """What the run is, or why it is left out."""
    try:
        status = run.read_status()
        if status is None:
            return LeftOut(str(run.path), "it has no status.json")
        if status.state != "done":
            progress = f"{status.images_seen:,} of {status.images_total:,} images"
            reason = f": {status.reason}" if status.reason else ""
            return LeftOut(str(run.path), f"{status.state} at {progress}{reason}")
        return run.read_run()
    except RecordError as error:
        _refuse_other_version(run)
        return LeftOut(str(run.path), error.message)


def _refuse_other_version(run: RunDir) -> None:
    try:
        raw = json.loads(run.run_json.read_bytes())
    except (OSError, ValueError):
        return
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise RecordError(
            f"{run.path} has schema version {version}; this ecdit reads and compares version {SCHEMA_VERSION}.",
            "Leave that run out, or use the version of ecdit that wrote it.",
        )


def _without_copies(
    finished: list[tuple[RunDir, RunRecord]],
) -> tuple[list[tuple[RunDir, RunRecord]], list[LeftOut]]:
    """Each config once: a copy of a run is not another seed."""
    first: dict[str, RunDir] = {}
    kept, copies = [], []
    for run, record in finished:
        original = first.setdefault(record.config_id, run)
        if original is run:
            kept.append((run, record))
        else:
            copies.append(LeftOut(str(run.path), f"it has the same config and seed as {original.path}"))
    return kept, copies


def _run_row(run: RunDir, record: RunRecord) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in RECORD_COLUMNS}
    return {"run": str(run.path), **fields, **dict(_dotted(record.config))}


def _dotted(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """`{"routing": {"name": x}}` as `("routing.name", x)`."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_tables(dirs: list[RunDir]) -> tuple[RowTable, RowTable, RowTable]:
    steps = _read_many([(run, run.steps) for run in dirs], StepRow)
    evals = _read_many([(run, run.evals) for run in dirs], EvalRow)
    return steps, evals, _read_many([(run, run.routing) for run in dirs], RoutingRow)


def _read_many(files: list[tuple[RunDir, Path]], kind: type[StepRow] | type[EvalRow] | type[RoutingRow]) -> RowTable:
    """All files as one table; in several processes when there are many."""
    if len(files) < MIN_RUNS_FOR_PROCESSES:
        return read_table(files, kind)
    num_processes = os.cpu_count() or 1
    chunks = [files[i::num_processes] for i in range(num_processes)]
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        return RowTable.concat(list(pool.map(read_table, chunks, [kind] * num_processes)))
