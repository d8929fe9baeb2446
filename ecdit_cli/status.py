"""`ecdit status`: where the runs of a sweep, or of any folder, stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecdit_cli._console import print_json, print_rows, talk
from ecdit_cli._options import Json


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a sweep, or one that holds runs.")],
    as_json: Json = False,
) -> None:
    """Show the state of all runs in a folder, planned ones included."""
    from ecdit_cli._sweep_view import COLUMNS, run_row, total_line, total_row
    from experiments.errors import RecordError
    from sweeps.progress import read_sweep

    snapshot = read_sweep(folder)
    if not snapshot.runs:
        raise RecordError(f"{folder} holds no runs.", "Give the folder of a sweep (out/quickstart) or of a run.")
    rows = [run_row(run) for run in snapshot.runs]
    if as_json:
        print_json({"runs": rows, "total": total_row(snapshot)})
    else:
        print_rows(rows, COLUMNS, False)
        talk().print(total_line(snapshot), soft_wrap=True, highlight=False)
