"""`ecdit status` shows the state and progress of the runs of a sweep, or of any folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecdit_cli._console import print_json, print_rows, say
from ecdit_cli._options import Json

if TYPE_CHECKING:
    from sweeps.progress import SweepSnapshot

WATCH_SECONDS = 2.0


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a sweep, or one that holds runs.")],
    watch: Annotated[bool, typer.Option("--watch", help="Renew the table until nothing is left to run.")] = False,
    as_json: Json = False,
) -> None:
    """Show the state of all runs in a folder, planned ones included."""
    from ecdit_cli._sweep_view import (
        COLUMNS,
        apart_cell,
        errors_by_name,
        live_view,
        origins_by_name,
        run_row,
        total_line,
        total_row,
    )  # fmt: skip
    from sweeps.differing_settings import differing_settings
    from sweeps.folder import SweepFolder

    snapshot = _read(folder)
    if watch:
        with live_view() as show:
            show(snapshot)
            while not _is_over(snapshot):
                time.sleep(WATCH_SECONDS)
                snapshot = _read(folder)
                show(snapshot)
    off = {} if snapshot.left_out else errors_by_name(SweepFolder(folder), snapshot.plan)
    origins = {} if snapshot.left_out else origins_by_name(snapshot.plan)
    apart = {} if snapshot.plan is None else differing_settings(snapshot.plan.runs)
    rows = [
        run_row(run) | apart_cell(apart, run.name) | off.get(run.name, {}) | origins.get(run.name, {})
        for run in snapshot.runs
    ]
    if as_json:
        print_json({"runs": rows, "total": total_row(snapshot), **_left_out(snapshot)})
    else:
        shown = [column for column in COLUMNS if column.key in ALWAYS or any(column.key in row for row in rows)]
        print_rows(rows, shown, False)
        say(total_line(snapshot))
    if snapshot.is_tuning:
        say("The runs of the sweep itself are planned when every arm is tuned.")
    for where, why in snapshot.left_out:
        say(f"Left out: {where}: {why}")


ALWAYS = ("name", "state", "images_seen", "images_total")


def _read(folder: Path) -> SweepSnapshot:
    from experiments.errors import RecordError
    from sweeps.progress import read_sweep

    snapshot = read_sweep(folder)
    if not snapshot.runs:
        for where, why in snapshot.left_out:
            say(f"Left out: {where}: {why}")
        raise RecordError(f"{folder} holds no runs.", "Give the folder of a sweep (out/quickstart) or of a run.")
    return snapshot


def _left_out(snapshot: SweepSnapshot) -> dict[str, list[dict[str, str]]]:
    """Returns what was left out for JSON; the key is absent where nothing was."""
    entries = [{"run": where, "reason": why} for where, why in snapshot.left_out]
    return {"left_out": entries} if entries else {}


def _is_over(snapshot: SweepSnapshot) -> bool:
    return not snapshot.is_tuning and all(run.is_over for run in snapshot.runs)
