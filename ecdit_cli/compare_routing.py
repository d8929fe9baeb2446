"""`ecdit compare-routing` shows the quality and cost of each router, and which differences the data supports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows, say
from ecdit_cli._loading import loaded
from ecdit_cli._options import FromProjects, Json, OutDirectory, RunFolders
from ecdit_cli.plot import output_folder
from experiments.text import printable

if TYPE_CHECKING:
    from analysis.compare import Comparison

SPEC = "routing_comparison"
DEFAULT_OUT = Path("out/comparison")

ONE_TIME_EXPLAINED = (
    "Val. loss and Dropped % are measured on batches that mix all times t, as in training; Loss at one t and "
    "Dropped at one t % on batches in which every image has the same t, as in sampling."
)

PUBLISHED_TITLE = "Published, not measured here (ImageNet 256, about 700K steps of batch 256, no guidance):"


def compare_routing(
    runs: RunFolders,
    projects: FromProjects,
    spec: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help=f"Without RUNS: the sweep to run or finish first, by default {SPEC}."),
    ] = None,
    out: OutDirectory = None,
    as_json: Json = False,
) -> None:
    """Compare routers over seeds. Without RUNS or --from it first runs the sweep of --spec, or finishes it.

    The sweep routing_comparison takes half an hour on two cores; routers_of_the_field has every router, each at a
    learning rate that is tuned for it.

    Below the table it prints alarms, where a validation loss misleads, and published FID of other models. It writes
    comparison.csv, .md, .png and .svg to --out. Default: SWEEP/tables for the folder of one sweep, else
    out/comparison.
    """
    from analysis.compare import compare, write_comparison
    from experiments.errors import ConfigError

    if spec is not None and (runs or projects):
        raise ConfigError(f"--spec {spec} runs a sweep, and runs to compare are given too.", "Leave out one of them.")
    if runs or projects:
        folders, folder, exit_code = runs, output_folder(out, runs, projects, "tables", DEFAULT_OUT), 0
    else:
        folders, folder, exit_code = _swept(spec or SPEC, out)
    comparison = compare(loaded(folders, projects))
    paths = write_comparison(comparison, folder)
    _print(comparison, as_json)
    for path in paths:
        say(str(path))
    if exit_code:
        raise typer.Exit(exit_code)


def _swept(spec: str, out: Path | None) -> tuple[list[Path], Path, int]:
    """Runs the sweep; returns the folder to read, the folder to write to, and the exit code of the sweep."""
    from ecdit_cli._sweep_view import screen
    from sweeps.execution import execute

    folder, result = execute(spec, [], screen(), out)
    if result.interrupted:
        raise typer.Exit(result.exit_code)
    return [folder.path], folder.path / "tables", result.exit_code


def _print(comparison: Comparison, as_json: bool) -> None:
    from analysis.arm_columns import arm_columns, columns_of
    from analysis.arm_scores import score_columns
    from analysis.compare import ARM_COLUMNS, comparison_json

    rows = comparison_json(comparison)
    if as_json:
        print_json(rows)
        for paragraph in comparison.conclusion.split("\n\n"):
            say(paragraph)
        return
    scores = score_columns(comparison.arms.columns)
    columns = (Column(key, value.title or value.name, value.text, priority=3) for key, value in scores.items())
    shown = columns_of(comparison.arms, (*arm_columns("setup"), *ARM_COLUMNS))
    print_rows(rows, (*shown, *columns), as_json=False)
    for paragraph in comparison.conclusion.split("\n\n"):  # one for each setup
        print(f"\n{printable(paragraph)}")
    for alarm in comparison.alarms:
        print(f"\nAlarm: {printable(alarm)}")
    _print_published()
    if any(row.get(key) is not None for row in rows for key in ("val_loss_same_t_mean", "dropped_share_same_t")):
        say(ONE_TIME_EXPLAINED)
    for note in comparison.notes:
        say(f"- {note}")


def _print_published() -> None:
    from analysis.published_fid import COLUMNS, CONDITIONS, DISAGREEMENT, published_rows

    print(f"\n{PUBLISHED_TITLE}")
    print_rows(published_rows(main_only=True), COLUMNS, as_json=False)
    say(f"- {CONDITIONS} {DISAGREEMENT} comparison.md has all {len(published_rows())} published values.")
