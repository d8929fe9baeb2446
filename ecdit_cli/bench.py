"""`ecdit bench` measures the speeds and costs that the project promises, side by side in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows
from ecdit_cli._options import Json, Overrides
from ecdit_cli._progress import progress
from experiments.benchmarks.measures import (
    COORDINATE_WIDTHS,
    Progress,
    SpeedOptions,
    bench_analysis,
    bench_checkpoint,
    bench_commands,
    bench_coordinates,
    bench_drawing,
    bench_dropless,
    bench_routing,
    bench_sample,
    bench_step_shares,
    bench_sweep,
    bench_training,
)
from experiments.benchmarks.reading_rates import DEVICE, MODEL, UTILISATIONS, WANTED_TIMES, bench_reading

Rows = list[dict[str, Any]]
What = Annotated[
    str,
    typer.Argument(
        metavar="routing|train|sample|data|checkpoint|cli|sweep|coordinates|analysis", help="What to measure."
    ),
]
NumRuns = Annotated[
    int, typer.Option(min=10, max=100_000, help="For analysis: number of runs, with 1,000 rows of steps each.")
]


def bench(
    what: What,
    overrides: Overrides,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training steps to time for each model.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Rounds of all but training; medians count.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, max=2**24, help="For routing: tokens of a batch.")] = 4096,
    width: Annotated[
        list[int] | None, typer.Option(min=1, max=131_072, help="For routing: width of the model; may be repeated.")
    ] = None,
    experts: Annotated[
        list[int] | None, typer.Option(min=1, max=1_048_576, help="For routing: number of experts; may be repeated.")
    ] = None,
    routers: Annotated[
        str | None, typer.Option(metavar="NAMES|all", help="For routing: measure the layers of these routers instead.")
    ] = None,
    gib: Annotated[float, typer.Option(min=0.001, max=256, help="For data: GiB of each data set of latents.")] = 1.0,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option(help="wall is the time that passes; cpu is processor time, for a machine that others use too."),
    ] = "wall",
    widths: Annotated[
        str, typer.Option(metavar="LIST", help="For coordinates: widths of the model, separated by commas.")
    ] = COORDINATE_WIDTHS,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="For coordinates: number of seeds to average over.")] = 3,
    runs: NumRuns = 100,
    as_json: Json = False,
) -> None:
    """Measure the suite itself. Let nothing else run meanwhile.

    routing: the expert-choice layer beside dense, DeepSpeed's and others; with --routers the layer of each router
    beside a dense one of the same executed FLOPs. train: which share of an iteration is
    forward, backward and optimizer; expert choice beside dense; and a step of shared_expert, which drops no token,
    beside expert choice and beside a loop over experts. There measured is a ratio of times, floor that of the accounted
    FLOPs, and gap the first over the second; one row has executed over accounted FLOPs. sample: what experts cost in
    sampling. data: how many images are drawn against how many are trained on, and how many latents with text features
    are read against what B trains on an H100. checkpoint: what a save costs training at the cadence of the run. cli:
    how long commands take to start. sweep: tiny runs through the executor against a process each, what the sweep
    itself takes, and 10,000 runs planned and looked at. coordinates: with which power of the width outputs grow after
    five steps, in the standard and in the maximal-update parametrization; 0 means that a learning rate carries over.
    analysis: seconds and memory of reading runs, with an empty cache and again, and of status, export, plot, report.
    """
    from experiments.errors import EcditError, did_you_mean

    options = SpeedOptions(list(overrides), rounds, tokens, width or [256], experts or [8, 32], clock, routers)
    if what in SPEED_MEASURES:
        print_rows(SPEED_MEASURES[what](options, _progress), SPEED_COLUMNS, as_json)
    elif what == "train":
        _print_train(options, steps, as_json)
    elif what == "data":
        _print_data(options, steps, gib, as_json)
    elif what == "coordinates":
        print_rows(bench_coordinates(options.overrides, widths, seeds, _progress), COORDINATE_COLUMNS, as_json)
    elif what == "analysis":
        print_rows(bench_analysis(options.overrides, runs, _progress), ANALYSIS_COLUMNS, as_json)
    elif what in MEASURES:
        measure, columns = MEASURES[what]
        print_rows(measure(options.overrides, steps, rounds, _progress), columns, as_json)
    else:
        measures = ["train", "data", "coordinates", "analysis", *SPEED_MEASURES, *MEASURES]
        raise EcditError(f"ecdit bench {what!r} does not exist.", did_you_mean(what, measures))


def _print_train(options: SpeedOptions, steps: int, as_json: bool) -> None:
    """Prints two tables, or one JSON list, in which the rows of the second table have the key `what`."""
    speed = [*bench_training(options, steps, _progress), *bench_dropless(options, steps, _progress)]
    shares = bench_step_shares(
        options.overrides, steps, _progress
    )  # last, because runs that have ended keep their memory
    if as_json:
        print_json([{key: value for key, value in row.items() if value is not None} for row in [*shares, *speed]])
        return
    print_rows(shares, TRAIN_COLUMNS, as_json=False)
    print_rows(speed, SPEED_COLUMNS, as_json=False)


def _print_data(options: SpeedOptions, steps: int, gib: float, as_json: bool) -> None:
    """Prints two tables, or one JSON list, in which the rows of the second table have the key `what`."""
    drawn = bench_drawing(options.overrides, steps, _progress)
    read = bench_reading(gib, options.rounds, options.clock, _progress)
    if as_json:
        print_json([*drawn, *read])
        return
    print_rows(drawn, DATA_COLUMNS, as_json=False)
    print_rows(read, READING_COLUMNS, as_json=False)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    with progress(name) as display:
        yield display.counter(total)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _met(value: bool) -> str:
    return "yes" if value else "no"


def _times(value: float) -> str:
    return f"{value:.1f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


SPEED_COLUMNS = (
    Column("what", "what"),
    Column("setting", "setting"),
    Column("measured", "measured", "{:.2f}".format, whole=True),
    Column("target", "target", "{:.2f}".format, whole=True),
    Column("is_met", "met", _met),
    Column("floor", "floor", "{:.2f}".format, whole=True),
    Column("gap", "gap", "{:.2f}".format, whole=True),
    Column("seconds", "ours ms", _milliseconds, whole=True),
    Column("peer_seconds", "peer ms", _milliseconds, whole=True),
    Column("skipped", "skipped"),
    Column("command", "to fill it"),
)
READING_COLUMNS = (
    Column("caption_tokens", "tokens a caption"),
    Column("bytes_per_image", "KiB an image", lambda value: f"{value / 1024:,.0f}"),
    Column("threads", "threads"),
    Column("loader_images_per_second", "images/s read", _whole, whole=True),
    Column("loader_bytes_per_second", "GB/s read", lambda value: f"{value / 1e9:.1f}", whole=True),
    Column("copied_bytes_per_second", "GB/s copied here", lambda value: f"{value / 1e9:.1f}", whole=True),
    *(
        column
        for percent in (round(100 * share) for share in UTILISATIONS)
        for column in (
            Column(f"trained_at_{percent}_percent", f"{MODEL} on {DEVICE} at {percent}%", _whole, whole=True),
            Column(f"ratio_at_{percent}_percent", f"ratio (wanted {WANTED_TIMES})", _times, whole=True),
        )
    ),
)
TRAIN_COLUMNS = (
    Column("model", "model"),
    Column("routing", "routing"),
    Column("forward_seconds", "forward ms", _milliseconds),
    Column("backward_seconds", "backward ms", _milliseconds),
    Column("optimizer_seconds", "optimizer ms", _milliseconds),
    Column("other_seconds", "the rest ms", _milliseconds),
    Column("iteration_seconds", "iteration ms", _milliseconds),
    Column("compute_share", "share of the three", "{:.1%}".format),
    Column("images_per_second", "images/s", "{:.0f}".format),
)
DATA_COLUMNS = (
    Column("model", "model"),
    Column("routing", "routing"),
    Column("loader_images_per_second", "images/s drawn", "{:.0f}".format),
    Column("training_images_per_second", "images/s trained", "{:.0f}".format),
    Column("ratio", "ratio", "{:.1f}".format),
)
CLI_COLUMNS = (
    Column("command", "command"),
    Column("seconds", "seconds", "{:.2f}".format),
    Column("fastest_seconds", "fastest", "{:.2f}".format),
    Column("slowest_seconds", "slowest", "{:.2f}".format),
    Column("limit_seconds", "at most", "{:.1f}".format),
)
SWEEP_COLUMNS = (
    Column("measure", "measure"),
    Column("value", "measured", "{:.3g}".format),
    Column("limit", "at most", "{:.3g}".format),
    Column("unit", "unit"),
)
ANALYSIS_COLUMNS = (
    Column("measure", "command"),
    Column("runs", "runs", _whole),
    Column("seconds", "seconds", "{:.1f}".format),
    Column("again_seconds", "again", "{:.1f}".format),
    Column("limit_seconds", "at most", "{:.1f}".format),
    Column("gibibytes", "GiB", "{:.2f}".format),
    Column("limit_gibibytes", "at most GiB", "{:.0f}".format),
)
COORDINATE_COLUMNS = (
    Column("output", "exponent of the RMS against the width"),
    Column("standard_value", "standard, value", "{:+z.2f}".format),
    Column("mup_value", "mup, value", "{:+z.2f}".format),
    Column("standard_change", "standard, change", "{:+z.2f}".format),
    Column("mup_change", "mup, change", "{:+z.2f}".format),
)
CHECKPOINT_COLUMNS = (
    Column("model", "model"),
    Column("routing", "routing"),
    Column("checkpoint_bytes", "MB", lambda size: f"{size / 1e6:,.0f}"),
    Column("iteration_seconds", "iteration ms", _milliseconds),
    Column("copy_seconds", "copy ms", _milliseconds),
    Column("extra_seconds", "a save costs ms", _milliseconds),
    Column("cadence_iterations", "every iterations", "{:,}".format),
    Column("stall_share", "share of training", "{:.2%}".format),
    Column("limit", "at most", "{:.0%}".format),
)
MEASURES: dict[str, tuple[Callable[[list[str], int, int, Progress], Rows], tuple[Column, ...]]] = {
    "checkpoint": (bench_checkpoint, CHECKPOINT_COLUMNS),
    "cli": (bench_commands, CLI_COLUMNS),
    "sweep": (bench_sweep, SWEEP_COLUMNS),
}
SPEED_MEASURES: dict[str, Callable[[SpeedOptions, Progress], Rows]] = {
    "routing": bench_routing,
    "sample": bench_sample,
}
