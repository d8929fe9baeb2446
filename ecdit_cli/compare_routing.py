"""`ecdit compare-routing` shows the quality and cost of each router, and which differences the data supports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows, say
from ecdit_cli._options import FromProjects, Json, OutDirectory, RunFolders
from experiments.text import printable

if TYPE_CHECKING:
    from analysis.compare import Comparison

SPEC = "routing_comparison"
DEFAULT_OUT = Path("out/comparison")


def compare_routing(runs: RunFolders, projects: FromProjects, out: OutDirectory = None, as_json: Json = False) -> None:
    """Compare routers over seeds. Without RUNS or --from it first runs the sweep routing_comparison.

    Writes comparison.csv, .md, .png and .svg to --out (default: the folder of the sweep, or out/comparison).
    """
    from analysis.compare import compare, write_comparison
    from analysis.load_records import load_records

    folders, folder, exit_code = (runs, out or DEFAULT_OUT, 0) if runs or projects else _swept(out)
    comparison = compare(load_records(folders, projects, say))
    paths = write_comparison(comparison, folder)
    _print(comparison, as_json)
    for path in paths:
        say(str(path))
    if exit_code:
        raise typer.Exit(exit_code)


def _swept(out: Path | None) -> tuple[list[Path], Path, int]:
    """Runs the sweep; returns the folder to read, the folder to write to, and the exit code of the sweep."""
    from ecdit_cli._sweep_view import screen
    from sweeps.execution import execute

    folder, result = execute(SPEC, [], screen(), out)
    if result.interrupted:
        raise typer.Exit(result.exit_code)
    return [folder.path], folder.path, result.exit_code


def _print(comparison: Comparison, as_json: bool) -> None:
    from analysis.arm_columns import arm_columns
    from analysis.arm_scores import score_columns
    from analysis.arm_table import json_rows
    from analysis.compare import ARM_COLUMNS

    rows = json_rows(comparison.arms)
    if as_json:
        print_json(rows)
        say(comparison.conclusion)
        return
    scores = score_columns(comparison.arms.columns)
    columns = (Column(key, value.title or value.name, value.text, priority=3) for key, value in scores.items())
    print_rows(rows, (*arm_columns("setting"), *ARM_COLUMNS, *columns), as_json=False)
    print(f"\n{printable(comparison.conclusion)}")
    for note in comparison.notes:
        say(f"- {note}")
