"""`ecdit compare-routing` shows the quality and cost of each router, and which differences the data supports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ecdit_cli._console import Column, print_json, print_rows, say
from ecdit_cli._options import FromProjects, Json, OutDirectory, RunFolders
from ecdit_cli.plot import read_runs
from experiments.text import printable
from experiments.units import count, flops

if TYPE_CHECKING:
    from analysis.compare import Comparison

SPEC = "routing_comparison"
DEFAULT_OUT = Path("out/comparison")

COLUMNS = (
    Column("setting", "setting"),
    Column("arm", "arm"),
    Column("params_total", "total", count, priority=4),
    Column("params_active", "active", count, priority=2),
    Column("flops_per_image", "per image", flops, priority=3),
    Column("num_seeds", "seeds", priority=2),
    Column("val_loss_mean", "loss", "{:.4f}".format),
    Column("val_loss_std", "std", "{:.4f}".format, priority=1),
    Column("val_loss_same_t_mean", "same t", "{:.4f}".format, priority=5),
    Column("images_to_dense_loss", "to dense", "{:,.0f}".format, priority=3),
    Column("images_per_second", "train/s", "{:.1f}".format, priority=4),
    Column("inference_seconds_per_image", "inference", "{:.4f} s".format, priority=4),
    Column("dropped_share", "dropped", "{:.1%}".format, priority=5),
    Column("dropped_share_same_t", "same t", "{:.1%}".format, priority=5),
)


def compare_routing(runs: RunFolders, projects: FromProjects, out: OutDirectory = None, as_json: Json = False) -> None:
    """Compare routers over seeds. Without RUNS or --from it first runs the sweep routing_comparison.

    Writes comparison.csv, .md, .png and .svg to --out (default: the folder of the sweep, or out/comparison).
    """
    from analysis.compare import compare, write_comparison

    folders, folder, exit_code = (runs, out or DEFAULT_OUT, 0) if runs or projects else _swept(out)
    comparison = compare(read_runs(folders, projects))
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
    from analysis.arm_scores import score_columns
    from analysis.arm_table import json_rows

    rows = json_rows(comparison.arms)
    if as_json:
        print_json(rows)
        say(comparison.conclusion)
        return
    scores = score_columns(comparison.arms.columns)
    columns = (Column(key, value.title or value.name, value.text, priority=3) for key, value in scores.items())
    print_rows(rows, (*COLUMNS, *columns), as_json=False)
    print(f"\n{printable(comparison.conclusion)}")
    for note in comparison.notes:
        say(f"- {note}")
