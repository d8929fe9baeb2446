"""`ecdit bench` measures the speeds and costs that the project promises, side by side in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from analysis.columns import Column
from ecdit_cli._bench_tables import (
    ANALYSIS_COLUMNS,
    BESIDE_COLUMNS,
    CHECKPOINT_COLUMNS,
    CLI_COLUMNS,
    COMPILE_COLUMNS,
    COORDINATE_COLUMNS,
    DATA_COLUMNS,
    GROWTH_COLUMNS,
    READING_COLUMNS,
    SHARE_COLUMNS,
    SPEED_COLUMNS,
    SWEEP_COLUMNS,
    TRAIN_COLUMNS,
)
from ecdit_cli._console import print_json, print_rows
from ecdit_cli._options import Json, Overrides
from ecdit_cli._progress import progress
from experiments.benchmarks.beside_public import bench_beside
from experiments.benchmarks.compiled_steps import bench_compile
from experiments.benchmarks.growth import bench_growth
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
from experiments.benchmarks.public_networks import PUBLIC_NETWORKS
from experiments.benchmarks.reading_rates import bench_reading

Rows = list[dict[str, Any]]
What = Annotated[
    str,
    typer.Argument(
        metavar="routing|train|sample|data|checkpoint|cli|sweep|coordinates|growth|analysis|compile",
        help="What to measure.",
    ),
]
NumRuns = Annotated[
    int, typer.Option(min=10, max=100_000, help="For analysis: number of runs, with 1,000 rows of steps each.")
]
Steps = Annotated[int, typer.Option(min=1, max=1_000_000, help="Training steps to time for each model.")]
Rounds = Annotated[int, typer.Option(min=1, max=10_000, help="Rounds of all but training, whose median is shown.")]
Tokens = Annotated[int, typer.Option(min=1, max=2**24, help="For routing: tokens of a batch.")]
LayerWidths = Annotated[
    list[int] | None, typer.Option(min=1, max=131_072, help="For routing: width of the model; may be repeated.")
]
NumExperts = Annotated[
    list[int] | None, typer.Option(min=1, max=1_048_576, help="For routing: number of experts; may be repeated.")
]
Routers = Annotated[
    str | None, typer.Option(metavar="NAMES|all", help="For routing: measure the layers of these routers instead.")
]
Neighbour = Annotated[
    bool, typer.Option("--neighbour", help="For routing: keep one core busy meanwhile, as a browser might.")
]
Gib = Annotated[float, typer.Option(min=0.001, max=256, help="For data: GiB of each data set of latents.")]
Seeds = Annotated[int, typer.Option(min=1, max=1000, help="For coordinates: number of seeds to average over.")]
Clock = Annotated[
    Literal["wall", "cpu"],
    typer.Option(help="wall is the time that passes; cpu is processor time, for a machine that others use too."),
]
Widths = Annotated[str, typer.Option(metavar="LIST", help="For coordinates: widths of the model, separated by commas.")]
Beside = Annotated[
    str | None,
    typer.Option(metavar="|".join(PUBLIC_NETWORKS), help="For train: our networks beside these public ones."),
]
PeerPath = Annotated[
    Path | None, typer.Option("--peer-path", metavar="DIR", help="For --beside: your checkout of their code.")
]


def bench(
    what: What,
    overrides: Overrides,
    steps: Steps = 40,
    rounds: Rounds = 5,
    tokens: Tokens = 4096,
    width: LayerWidths = None,
    experts: NumExperts = None,
    routers: Routers = None,
    neighbour: Neighbour = False,
    gib: Gib = 1.0,
    clock: Clock = "wall",
    widths: Widths = COORDINATE_WIDTHS,
    seeds: Seeds = 3,
    runs: NumRuns = 100,
    beside: Beside = None,
    peer_path: PeerPath = None,
    as_json: Json = False,
) -> None:
    """Measure the suite itself. Let nothing else run meanwhile.

    routing: the expert-choice layer beside dense, DeepSpeed's and others; with --routers the layer of each router
    beside a dense one of the same executed FLOPs; with --neighbour beside a busy process too. train: which share of an
    iteration is forward, backward and optimizer; expert choice beside dense; and a step of shared_expert, which drops
    no token, beside expert choice and beside a loop over experts. In these tables measured is a ratio of times, floor
    the same ratio of accounted FLOPs, and gap measured over floor; one row has executed over accounted FLOPs. With
    --beside and --peer-path, train instead measures whole networks beside public ones of the same shapes. sample: what
    experts cost in sampling. data: how many images are drawn a second beside how many are trained on, and how many
    latents with text features are read beside what B would train on an H100. checkpoint: what saving costs training at
    the cadence of the run. cli: how long commands take to start. sweep: tiny runs through the executor beside a process
    for each, what the sweep itself takes, and the time to plan and show 10,000 runs. coordinates: with which power of
    the width outputs grow after five steps, in the standard and in the maximal-update parametrization; 0 means that a
    learning rate carries over. growth: with which power seconds and memory grow with tokens, experts, width, processes,
    images of a data set and runs of a sweep, beside the largest power that the work has. analysis: seconds and memory
    of reading runs, with an empty cache and again, and of status, export, plot and report. compile: what torch.compile
    saves in a step of training, and after how many steps it has paid for the time that it takes.
    """
    from experiments.errors import EcditError, did_you_mean

    sizes = width or [256], experts or [8, 32]
    options = SpeedOptions(list(overrides), rounds, tokens, *sizes, clock, routers, neighbour)
    if beside is not None or peer_path is not None:
        _print_beside(what, options, beside, peer_path, steps, as_json)
    elif what in SPEED_MEASURES:
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


def _print_beside(
    what: str, options: SpeedOptions, beside: str | None, peer_path: Path | None, steps: int, as_json: bool
) -> None:
    """Prints two tables, or one JSON list, in which the rows of the second table have the key `group`."""
    from experiments.errors import EcditError

    if what != "train":
        raise EcditError(f"--beside and --peer-path do not fit ecdit bench {what}.", "Use them with ecdit bench train.")
    found = bench_beside(beside, peer_path, options.overrides, steps, options.clock, _progress)
    if as_json:
        print_rows([*found.pairs, *found.shares], (), as_json=True)
        return
    print_rows(found.pairs, BESIDE_COLUMNS, as_json=False)
    print_rows(found.shares, SHARE_COLUMNS, as_json=False)


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


MEASURES: dict[str, tuple[Callable[[list[str], int, int, Progress], Rows], tuple[Column, ...]]] = {
    "checkpoint": (bench_checkpoint, CHECKPOINT_COLUMNS),
    "cli": (bench_commands, CLI_COLUMNS),
    "compile": (bench_compile, COMPILE_COLUMNS),
    "growth": (bench_growth, GROWTH_COLUMNS),
    "sweep": (bench_sweep, SWEEP_COLUMNS),
}
SPEED_MEASURES: dict[str, Callable[[SpeedOptions, Progress], Rows]] = {
    "routing": bench_routing,
    "sample": bench_sample,
}
