"""`ecdit export`: all runs of a folder as one table for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecdit_cli._console import print_json, talk
from ecdit_cli._options import Json


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a sweep, or one that holds runs.")],
    out: Annotated[
        Path | None, typer.Option(metavar="PREFIX", help="Writes PREFIX.csv and PREFIX.parquet. Default: DIR/runs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one CSV and one Parquet file with a row for every run: state, settings, last losses, last evaluations."""
    from analysis.export import export_runs, write_table

    table = export_runs(folder)
    paths = write_table(table, out or folder / "runs")
    if as_json:
        print_json({"num_runs": len(table), "columns": list(table.columns), "files": [str(path) for path in paths]})
        return
    for path in paths:
        print(path)
    talk().print(f"{len(table):,} runs, {len(table.columns)} columns.", highlight=False)
