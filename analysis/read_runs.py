"""Reads many runs and their rows, on all cores where there are many, and keeps the rows that were read.

The runs are read in batches that share an entry of the cache (`row_cache.py`), so that two processes never write the
same entry. The order of the result is that of the runs, whichever batch they were in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from analysis.found_runs import DivergedRun, FinishedRun, LeftOutRecord, read_found_run
from analysis.processes import RUNS_AT_ONCE, on_all_cores
from analysis.read_rows import ReadFile, RowTable, as_table
from analysis.row_cache import OFF, VARIABLE, CachePlace, cache_folder, places, read_files, remove_old
from experiments.records.record_types import EvalRow, StepRow
from experiments.records.run_folder import RunDir

MIN_KEPT_BYTES = 4 * 2**20
"""Smaller files of rows are all parsed in a tenth of a second, and are not kept."""

Found = list[FinishedRun | DivergedRun | LeftOutRecord]


class RunBatch(NamedTuple):
    """Names runs that are read together, and where their rows are kept."""

    runs: list[RunDir]
    place: CachePlace | None


class Read(NamedTuple):
    """Holds the runs of a batch, the rows of those that ended, and the reason where these rows could not be kept."""

    found: Found
    steps: list[ReadFile]
    evals: list[ReadFile]
    not_kept: str | None


def read_runs(
    runs: list[RunDir], tell: Callable[[str], None], on_runs: Callable[[int, int], None]
) -> tuple[Found, RowTable, RowTable]:
    """Returns every run, and the tables of the steps and evaluations of those that ended.

    `on_runs` is called with how many of how many runs have been read, and `tell` where rows cannot be kept.
    """
    folder = cache_folder()
    batches = _batches(runs, folder)
    found: dict[Path, FinishedRun | DivergedRun | LeftOutRecord] = {}
    steps: dict[Path, ReadFile] = {}
    evals: dict[Path, ReadFile] = {}
    not_kept = None
    for batch, read in zip(batches, on_all_cores(_read_batch, batches, len(runs)), strict=True):
        found.update(zip((run.path for run in batch.runs), read.found, strict=True))
        ended = [run.path for run in _ended(batch.runs, read.found)]
        steps.update(zip(ended, read.steps, strict=True))
        evals.update(zip(ended, read.evals, strict=True))
        not_kept = not_kept or read.not_kept
        on_runs(len(found), len(runs))
    if not_kept is not None:
        tell(f"The rows are not kept for the next command: {not_kept}. {VARIABLE} names another folder, or is {OFF}.")
    elif folder is not None and any(batch.place for batch in batches):
        with suppress(OSError):  # what is too much stays until the next time
            remove_old(folder)
    names = [str(run.path) for run in runs if run.path in steps]
    tables = [
        as_table(names, [rows.pop(Path(name)) for name in names], kind)
        for rows, kind in ((steps, StepRow), (evals, EvalRow))
    ]
    # Texts are slow to send to another process, so that the column becomes one here.
    evaluations = tables[1].frame.assign(run=tables[1].frame["run"].astype("str"))
    return [found[run.path] for run in runs], tables[0], RowTable(evaluations, tables[1].left_out)


def _batches(runs: list[RunDir], folder: Path | None) -> list[RunBatch]:
    """Returns the runs by their place in the cache."""
    if folder is None or _num_bytes(runs) < MIN_KEPT_BYTES:
        firsts = range(0, len(runs), RUNS_AT_ONCE)
        return [RunBatch(runs[first : first + RUNS_AT_ONCE], None) for first in firsts]
    beside: dict[Path, list[RunDir]] = {}
    for run in runs:
        beside.setdefault(run.path.parent, []).append(run)
    batches: dict[CachePlace | None, list[RunDir]] = {}
    for parent, mine in beside.items():
        found = places(os.path.realpath(parent), [run.path.name for run in mine], folder)
        for run, place in zip(mine, found, strict=True):
            batches.setdefault(place, []).append(run)
    return [RunBatch(mine, place) for place, mine in batches.items()]


def _num_bytes(runs: list[RunDir]) -> int:
    """Returns the size of the files of rows, as far as it has to be known."""
    total = 0
    for run in runs:
        for path in (run.steps, run.evals):
            with suppress(OSError):
                total += os.stat(path).st_size
        if total >= MIN_KEPT_BYTES:
            break
    return total


def _read_batch(batch: RunBatch) -> Read:
    found = [read_found_run(run) for run in batch.runs]
    ended = _ended(batch.runs, found)
    not_kept: list[str] = []
    steps = read_files([run.steps for run in ended], StepRow, batch.place, not_kept.append)
    evals = read_files([run.evals for run in ended], EvalRow, batch.place, not_kept.append)
    return Read(found, steps, evals, next(iter(not_kept), None))


def _ended(runs: list[RunDir], found: Found) -> list[RunDir]:
    """Returns the runs whose rows are read: those that finished or diverged."""
    return [run for run, each in zip(runs, found, strict=True) if not isinstance(each, LeftOutRecord)]
