"""`ecdit evaluate`: measure finished runs and add the values to their records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecdit_cli._options import Json

if TYPE_CHECKING:
    from experiments.records.layout import RunDir
    from experiments.records.schema import EvalRow

METRICS = ("inference-time",)


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run folders, or folders that hold them.")],
    metrics: Annotated[str, typer.Option(help="What to measure, by commas: inference-time.")] = "inference-time",
    batch_images: Annotated[int, typer.Option(min=1, help="Images sampled at a time.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the median counts.")] = 5,
    as_json: Json = False,
) -> None:
    """Measure trained runs side by side: seconds to generate an image.

    The runs take turns in one process, so that the numbers can be compared. Let nothing else run meanwhile.
    """
    from experiments.errors import EcditError, did_you_mean
    from experiments.records.layout import find_runs
    from experiments.records.writer import append_evaluations

    for metric in metrics.split(","):
        if metric not in METRICS:
            raise EcditError(f"--metrics {metric!r} does not exist.", did_you_mean(metric, METRICS))
    folders = list(find_runs(*runs))
    if not folders:
        raise EcditError(f"No runs in {', '.join(map(str, runs))}.", "Train one first: ecdit train model=nano")
    rows = _measure(folders, batch_images, rounds)
    for folder, row in zip(folders, rows, strict=True):
        append_evaluations(folder, [row])
    _print(folders, rows, as_json)


def _measure(folders: list[RunDir], batch_images: int, rounds: int) -> list[EvalRow]:
    from rich.progress import Progress

    from ecdit_cli._console import talk
    from experiments.evaluation.inference_time import measure_inference_time
    from experiments.evaluation.load import load_run

    console = talk()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("timing samples", total=len(folders) * rounds)
        loaded = [load_run(folder, "raw", console.print) for folder in folders]
        return measure_inference_time(loaded, batch_images, rounds, lambda: bars.update(task, advance=1))


def _print(folders: list[RunDir], rows: list[EvalRow], as_json: bool) -> None:
    from ecdit_cli._console import Column, print_rows

    shown = [
        {"run": folder.path.name, "metric": row.metric, "value": row.value, **row.settings}
        for folder, row in zip(folders, rows, strict=True)
    ]
    columns = [
        Column("run", "run"),
        Column("value", "seconds per image", "{:.4f}".format),
        Column("batch_images", "batch"),
        Column("steps", "steps"),
        Column("guidance", "guidance"),
        Column("precision", "precision"),
        Column("device", "device"),
    ]
    print_rows(shown, columns, as_json)
