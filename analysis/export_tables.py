"""Exports all runs of a folder as one table: a row per run, its settings and the last value of everything measured.

`export_runs` makes the table for other programs. It holds unfinished runs too, compares nothing, and refuses only a
folder without runs. Columns are named as in the records: settings with dots (`routing.name`), `steps.loss` for the last
row of `steps.jsonl`, `evals.val_loss` for the last value of a metric with raw weights, `evals.ema.val_loss` with
averaged ones, and `evals.ema@0.1.validation-loss` with a reconstructed average of this width. Where a metric was
measured under several conditions the last value counts, and `...@guidance` holds its guidance scale. A missing value is
empty. `final_tables` makes tables for people: settings, cost and results of the finished runs, and their spread over
seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.arm_columns import arm_columns, columns_of
from analysis.arm_table import arm_table
from analysis.columns import Column
from analysis.diverged_runs import diverged_table
from analysis.escaping import for_csv
from analysis.found_runs import record_facts
from analysis.load_records import Records
from analysis.processes import RUNS_AT_ONCE, on_all_cores
from analysis.read_rows import read_columns, said_damaged
from analysis.report.diverged_rows import DIVERGED_COLUMNS
from analysis.report.document import MISSING
from analysis.report.run_rows import columns_with_scores, run_rows
from analysis.run_table import is_missing, markdown, run_table
from analysis.wandb_runs import fetch_project
from experiments.config.stored import stored_config
from experiments.errors import OutputError, RecordError
from experiments.records.divergence import diverged_at
from experiments.records.outputs import is_ours, output_files
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import RunDir, Skipped, find_runs
from experiments.records.storage import storage_errors
from experiments.settings_id import dotted
from experiments.text import printable

SPREAD = "val_loss_std"
"""The standard deviation over seeds belongs to an arm, so the table of runs has no such column."""

ARM_COLUMNS = arm_columns(
    "setup", "arm", "rate", "num_seeds", "num_diverged", "params_total", "params_active", "flops_per_image",
    "val_loss_mean", SPREAD, "val_loss_ema_mean", "images_per_second",
)  # fmt: skip

STATUS_COLUMNS = ("state", "images_seen", "images_total", "reason")


def export_runs(
    root: Path | None,
    projects: Sequence[str] = (),
    skipped: Skipped | None = None,
    on_runs: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Returns one row per run at or below `root`, in the order of the paths, and then those of W&B `projects`.

    A folder that looks like a run and is none is added to `skipped`, with the reason. `on_runs` is called with how many
    of how many runs have been read. Raises `RecordError` when there is no run, and `WandbError` for a project that
    cannot be read.
    """
    if root is not None and not root.is_dir():
        raise RecordError(f"{root} is not a folder.", "Name the folder of a sweep, or one that holds runs.")
    found = [] if root is None else find_runs(root, skipped=skipped)
    named = [(run, str(run.path.relative_to(root or "."))) for run in found]
    for place in projects:
        named += [(RunDir(folder), f"{place}/{folder.name}") for folder in fetch_project(place).folders]
    parts = [named[first : first + RUNS_AT_ONCE] for first in range(0, len(named), RUNS_AT_ONCE)]
    rows: list[dict[str, Any]] = []
    for part in on_all_cores(_rows, parts, len(named)):
        rows += part
        on_runs(len(rows), len(named))
    if not rows:
        where = ", ".join([*([str(root)] if root else []), *projects])
        raise RecordError(f"{where} holds no runs.", "Make some with: ecdit sweep quickstart --out out/demo")
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class FinalTables:
    """The tables for people: `runs` has a row per finished run, `arms` one per setup and arm.

    `diverged` has a row for each run that diverged, with the columns `DIVERGED_COLUMNS`.
    """

    runs: pd.DataFrame
    run_columns: list[Column]
    arms: pd.DataFrame
    diverged: pd.DataFrame

    @property
    def arm_columns(self) -> list[Column]:
        """Returns the columns of the table of arms, in which something is shown."""
        return columns_of(self.arms, ARM_COLUMNS)

    def markdown(self) -> str:
        """Returns both tables as Markdown."""
        cells, arms = _texts(self.runs, self.run_columns), _texts(self.arms, self.arm_columns)
        parts = [
            "## Runs\n", markdown([column.title for column in self.run_columns], cells),
            "## Over seeds\n", markdown([column.title for column in self.arm_columns], arms),
        ]  # fmt: skip
        if len(self.diverged):
            titles = [column.title for column in DIVERGED_COLUMNS]
            parts += ["## Diverged\n", markdown(titles, _texts(self.diverged, DIVERGED_COLUMNS))]
        return "\n".join(parts)


def final_tables(records: Records) -> FinalTables:
    """Makes the tables of finished runs. The spread is missing with one seed. Raises `RecordError` as `run_table`."""
    table = run_table(records)
    runs = run_rows(records, table)
    columns = [column for column in columns_with_scores(runs) if column.key in runs and column.key != SPREAD]
    return FinalTables(runs, columns, arm_table(records, table), diverged_table(records))


def _texts(rows: pd.DataFrame, columns: Sequence[Column]) -> list[list[str]]:
    kept = rows[[column.key for column in columns]].to_dict("records")
    return [[_text(column, row[column.key]) for column in columns] for row in kept]


def _text(column: Column, value: Any) -> str:
    if value is None or (isinstance(value, float) and is_missing(value)):
        return MISSING
    return column.write(value)


def write_table(table: pd.DataFrame, prefix: Path, final: FinalTables | None = None) -> list[Path]:
    """Writes `PREFIX.csv`, `PREFIX.parquet` and, where `final` is given, `PREFIX.md`, each whole or not at all.

    Without `final` a `PREFIX.md` of an earlier export is removed, because it would describe other runs than the files
    beside it. Raises `OutputError` where a file was not written by ecdit, and `StorageError`.
    """
    if prefix.name in ("", ".."):
        raise OutputError(f"--out {prefix} is a folder, and no name to write files under.", "For example: --out runs")
    *paths, page = [prefix.with_name(f"{prefix.name}.{kind}") for kind in ("csv", "parquet", "md")]
    if final is not None:
        paths.append(page)
    with output_files(paths) as parts:
        for_csv(table).to_csv(parts[0], index=False)
        _for_parquet(table).to_parquet(parts[1], index=False)
        if final is not None:
            parts[2].write_text(final.markdown(), encoding="utf-8")
    if final is None and is_ours(page):
        with storage_errors(page):
            page.unlink()
    return paths


def _rows(named: list[tuple[RunDir, str]]) -> list[dict[str, Any]]:
    return [_row(run, name) for run, name in named]


def _row(run: RunDir, name: str) -> dict[str, Any]:
    """Reads all that is readable of one run; the column `damaged` names the rest."""
    row: dict[str, Any] = {"run": printable(name)}
    damaged: list[str] = []

    def read(part: Callable[[], dict[str, Any]]) -> None:
        try:
            row.update(part())
        except RecordError as error:
            damaged.append(error.message)

    read(lambda: _status(run))
    read(lambda: _settings(run))
    read(lambda: {f"steps.{name}": value for name, value in (run.last_step() or {}).items()})
    read(lambda: dict(_last_values(run, damaged)))
    return row | {"damaged": "; ".join(damaged) or None}


def _status(run: RunDir) -> dict[str, Any]:
    status = run.read_status()
    diverged = None if status is None else diverged_at(status)
    return {name: getattr(status, name, None) for name in STATUS_COLUMNS} | {"diverged_at_images": diverged}


def _settings(run: RunDir) -> dict[str, Any]:
    record = run.read_run()
    stored_config(record.config, run.run_json, record.plugin_names)
    return record_facts(record) | dict(dotted(record.config)) | {"command": " ".join(record.command)}


def _last_values(run: RunDir, damaged: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields the values of `evals.jsonl`, later ones last. The faults of unreadable lines are added to `damaged`."""
    for metric, weights, settings, value in _measured(run, damaged):
        name = _column(metric, weights, settings.get("ema_width"))
        yield name, value
        scale = settings.get("guidance")
        if scale is not None:
            yield f"{name}@guidance", scale


def _measured(run: RunDir, damaged: list[str]) -> Iterator[tuple[str, str, dict[str, Any], float]]:
    """Yields the metric, weights, settings and value of each row."""
    columns, _, faults = read_columns(run.evals, EvalRow)
    names = ("metric", "weights", "settings", "value")
    for metric, weights, settings, value in zip(*(columns[name].tolist() for name in names), strict=True):
        yield metric, weights, settings or {}, value
    if faults:
        damaged.append(said_damaged(run.evals, faults))


@lru_cache(maxsize=4096)
def _column(metric: str, weights: str, ema_width: float | None) -> str:
    width = "" if ema_width is None else f"@{ema_width:g}"
    return f"evals.{f'ema{width}.' if weights == 'ema' else ''}{printable(metric)}"


def _for_parquet(table: pd.DataFrame) -> pd.DataFrame:
    """Gives each column one type, which Parquet needs: a column that mixes numbers and words becomes words."""
    # A setting such as `routing.group_images` is a number in some runs and `batch` in others.
    mixed = [str(name) for name in table if table[name].dtype == object and _kinds(table[name]) > 1]
    return table.assign(
        **{name: table[name].map(lambda value: None if pd.isna(value) else str(value)) for name in mixed}
    )


def _kinds(values: pd.Series[Any]) -> int:
    return int(values.dropna().map(type).nunique())
