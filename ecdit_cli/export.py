"""`ecdit export` writes all runs as one table, for other programs and for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows, say
from ecdit_cli._loading import loaded
from ecdit_cli._options import FromProjects, Json
from ecdit_cli._progress import progress

if TYPE_CHECKING:
    import pandas as pd

    from analysis.export_tables import FinalTables
    from experiments.records.run_folder import Skipped

DEFAULT_OUT = Path("out/runs")


def export(
    projects: FromProjects,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The folder of a sweep, or one that holds runs.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PREFIX", help="Writes PREFIX.csv, .parquet and .md. Default: DIR/runs, or out/runs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the finished runs and the spread over seeds; write them as Markdown, and every run as CSV and Parquet.

    CSV and Parquet have a row for every run, finished or not: state, settings, last losses, last evaluations.
    """
    from analysis.export_tables import export_runs, write_table
    from experiments.errors import EcditError

    if folder is None and not projects:
        raise EcditError(
            "No runs are named.", "Name a folder: ecdit export DIR, or a W&B project: --from wandb:ENTITY/PROJECT"
        )
    skipped: Skipped = []
    with progress("exporting runs", "runs") as show:
        table = export_runs(folder, projects, skipped, show)
    final = _final([folder] if folder else [], projects)
    if final is None:
        for where, why in skipped:
            say(f"Left out: {where}: {why}")
    paths = write_table(table, out or (folder / "runs" if folder else DEFAULT_OUT), final)
    if as_json:
        about = {"num_runs": len(table), "columns": list(table.columns), "files": [str(path) for path in paths]}
        print_json(about | {"runs": _runs(final), "arms": _arms(final), "diverged": _diverged(final)})
        return
    if final is not None:
        _print(final)
    for path in paths:
        say(str(path))
    say(f"{len(table):,} runs, {len(table.columns)} columns.")


def _final(roots: list[Path], projects: list[str]) -> FinalTables | None:
    """Returns the tables of finished runs, or None, with a message, where none is finished or they do not compare."""
    from analysis.export_tables import final_tables
    from experiments.errors import RecordError

    try:
        return final_tables(loaded(roots, projects))
    except RecordError as error:
        say(f"No table of final values: {error}")
        return None


def _print(final: FinalTables) -> None:
    from analysis.report.diverged_rows import DIVERGED_COLUMNS

    print_rows(_runs(final), _columns(final.runs, final.run_columns), as_json=False, title="Runs")
    print()
    print_rows(_arms(final), _columns(final.arms, final.arm_columns), as_json=False, title="Over seeds")
    if len(final.diverged):
        print()
        print_rows(_diverged(final), _columns(final.diverged, DIVERGED_COLUMNS), as_json=False, title="Diverged")


def _columns(frame: pd.DataFrame, columns: Sequence[Column]) -> list[Column]:
    """Returns the columns that hold at least one value; an empty text is none."""
    has_value = (frame != "") & frame.notna()
    return [column for column in columns if has_value[column.key].any()]


def _runs(final: FinalTables | None) -> list[dict[str, Any]]:
    if final is None:
        return []
    from analysis.arm_table import missing_as_none

    return missing_as_none(final.runs[["run", *(column.key for column in final.run_columns)]])


def _arms(final: FinalTables | None) -> list[dict[str, Any]]:
    if final is None:
        return []
    from analysis.arm_table import json_rows

    return json_rows(final.arms)


def _diverged(final: FinalTables | None) -> list[dict[str, Any]]:
    if final is None or final.diverged.empty:
        return []
    from analysis.arm_table import missing_as_none
    from analysis.report.diverged_rows import DIVERGED_COLUMNS

    return missing_as_none(final.diverged[["run", *(column.key for column in DIVERGED_COLUMNS)]])
