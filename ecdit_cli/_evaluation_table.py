"""The output of `ecdit evaluate`: one line for each run and guidance scale, or every row as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows, say
from experiments.config.metric_row import RecordedValue
from experiments.config.metrics import IMPORTED, METRICS, sampled_metrics
from experiments.units import flops

if TYPE_CHECKING:
    from experiments.evaluation.measured_runs import MeasuredRun
    from experiments.records.record_types import EvalRow


def print_table(measured: Sequence[MeasuredRun], as_json: bool) -> None:
    """Prints one line for each run and guidance scale, or with `as_json` every row in full.

    Runs whose name another one has too are shown with their folders.
    """
    _say_too_few(measured)
    alike = _folders_of_one_name(measured)
    if as_json:
        print_json([_json(one, one.folder in alike) for one in measured])
        return
    rows = [_cells(one, one.folder in alike) for one in measured]
    columns = [column for column in evaluation_columns() if any(column.key in row for row in rows)]
    print_rows(rows, columns, as_json=False)
    for value in _table_values():
        if value.parts and any(value.name in row for row in rows):
            print(f"\n{value.name}, by part:")
            print_rows(rows, _part_columns(value, rows), as_json=False)
    for key, note in (*((value.name, value.note) for value in _table_values()), OVERHEAD_NOTE):
        if note and any(key in row for row in rows):
            say(note)


def _folders_of_one_name(measured: Sequence[MeasuredRun]) -> set[Path]:
    """Returns the folders of the runs whose name does not tell them apart."""
    folders = {one.folder for one in measured}
    names = Counter(folder.name for folder in folders)
    return {folder for folder in folders if names[folder.name] > 1}


def _say_too_few(measured: Sequence[MeasuredRun]) -> None:
    """Says of which metrics the images are so few that the value says little."""
    rows = [row for one in measured for row in one.rows]
    for value in _table_values():
        counts = {row.num_samples for row in rows if row.metric == value.name and value.says_little(row.num_samples)}
        if counts and value.few_images is not None:
            few = value.few_images
            say(
                f"{value.name} of {' and '.join(map(str, sorted(counts)))} images says little: of no more images than "
                f"its {few.num_images} {few.things} {few.consequence}. Sample more: --images 512."
            )


def _json(one: MeasuredRun, with_folder: bool) -> dict[str, Any]:
    rows = [row.model_dump(exclude_none=True) for row in one.rows]
    overhead = {} if one.overhead is None else {"overhead_over_dense": asdict(one.overhead)}
    width = {} if one.ema_width is None else {"ema_width": one.ema_width}
    folder = {"folder": str(one.folder)} if with_folder else {}
    return {"run": one.run, **folder, **width, "guidance": one.guidance, "rows": rows, **overhead}


def _cells(one: MeasuredRun, with_folder: bool) -> dict[str, Any]:
    """Returns the rows by metric, with the overheads; the columns format a row as value and interval."""
    row: dict[str, Any] = {"run": str(one.folder) if with_folder else one.run, "guidance": one.guidance}
    if one.ema_width is not None:
        row["ema_width"] = one.ema_width
    for measured in one.rows:
        row[measured.metric] = measured
        row.setdefault("images_seen", measured.images_seen)
        if measured.metric in METRICS:
            row.setdefault("num_samples", {})[measured.metric] = measured.num_samples
    if one.overhead is not None:
        row |= {f"overhead_{name}": share for name, share in vars(one.overhead).items()}
    return row


def _table_values() -> list[RecordedValue]:
    """Returns the values that have a column, in the order of the columns."""
    sampled = [value for row in sampled_metrics() for value in row.values]
    return [*sampled, *IMPORTED, *METRICS["inference-time"].values]


def _column(value: RecordedValue) -> Column:
    def write(row: EvalRow) -> str:
        text = value.text(row.value, row.interval_low, row.interval_high)
        return text + (" (too few)" if value.says_little(row.num_samples) else "")

    return Column(value.name, value.title or value.name, write, whole=True)


def _part_columns(value: RecordedValue, rows: Sequence[dict[str, Any]]) -> tuple[Column, ...]:
    """Returns the columns of the parts of a value in `rows`, which are shown without intervals."""

    def write(row: EvalRow) -> str:
        return value.text(row.value)

    parts = (Column(f"{value.name}/{part}", title, write, whole=True) for part, title in value.parts.items())
    which = (column for column in COLUMNS[:3] if any(column.key in row for row in rows))
    return (*which, *parts)


def _counts(by_metric: Mapping[str, int]) -> str:
    """Writes the number of images, once where all metrics have the same, and else of each metric by its name."""
    if len(set(by_metric.values())) == 1:
        return f"{next(iter(by_metric.values())):,}"
    return ", ".join(f"{metric} {number:,}" for metric, number in by_metric.items())


COLUMNS = (
    Column("run", "run"),
    Column("ema_width", "EMA width", "{:g}".format),
    Column("guidance", "guidance", "{:g}".format),
    Column("images_seen", "trained on", "{:,}".format),
    Column("num_samples", "samples", _counts),
)
COST_COLUMNS = (
    Column("inference_flops_per_image", "FLOPs", lambda row: flops(row.value), whole=True),
    Column("overhead_params_active", "activated", "{:+z.1%}".format, whole=True),
    Column("overhead_flops", "+FLOPs", "{:+z.1%}".format, whole=True),
    Column("overhead_seconds", "+time", "{:+z.1%}".format, whole=True),
)
OVERHEAD_NOTE = ("overhead_seconds", "activated, +FLOPs, +time: over dense of the same depth.")


def evaluation_columns() -> tuple[Column, ...]:
    """Returns the columns of the table: what was measured, a column for each recorded value, and costs."""
    return (*COLUMNS, *map(_column, _table_values()), *COST_COLUMNS)
