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
from ecdit_cli._speed import (
    SPEED_COLUMNS,
    SpeedOptions,
    bench_dropless,
    bench_routing,
    bench_sample,
    bench_training,
)

ROUTERS = ("dense", "expert_choice", "token_choice")
NUM_LOADED_IMAGES = 4096
Rows = list[dict[str, Any]]


def bench(
    what: Annotated[
        str, typer.Argument(metavar="routing|train|sample|data|checkpoint|cli|sweep", help="What to measure.")
    ],
    overrides: Overrides,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training steps to time for each model.")] = 40,
    rounds: Annotated[
        int, typer.Option(min=1, max=10_000, help="Repetitions of everything else; the median counts.")
    ] = 5,
    tokens: Annotated[int, typer.Option(min=1, max=2**24, help="routing: tokens of a batch.")] = 4096,
    width: Annotated[
        list[int] | None, typer.Option(min=1, max=131_072, help="routing: model width; may be given again.")
    ] = None,
    experts: Annotated[
        list[int] | None, typer.Option(min=1, max=1_048_576, help="routing: experts; may be given again.")
    ] = None,
    gib: Annotated[
        float, typer.Option(min=0.001, max=256, help="data: size of each data set of latents written and read.")
    ] = 1.0,
    clock: Annotated[
        Literal["wall", "cpu"], typer.Option(help="cpu: seconds computed, for a machine that others use too.")
    ] = "wall",
    as_json: Json = False,
) -> None:
    """Measure the suite itself. Let nothing else run meanwhile.

    routing: the expert-choice layer beside dense, DeepSpeed's and others. train: which share of an iteration is
    forward, backward and optimizer; expert choice beside dense; and a step of shared_expert, which drops no token,
    beside expert choice and beside a loop over experts. There measured is a ratio of times, floor that of the accounted
    FLOPs, and gap the first over the second; one row has executed over accounted FLOPs. sample: what experts cost in
    sampling. data: how many images are drawn against how many are trained on, and how many latents with text features
    are read against what B trains on an H100. checkpoint: what a save costs training at the cadence of the run. cli:
    how long commands take to start. sweep: tiny runs through the executor against a process each, what the sweep
    itself takes, and 10,000 runs planned and looked at.
    """
    from experiments.errors import EcditError, did_you_mean

    options = SpeedOptions(list(overrides), rounds, tokens, width or [256], experts or [8, 32], clock)
    if what in SPEED_MEASURES:
        print_rows(SPEED_MEASURES[what](options, _progress), SPEED_COLUMNS, as_json)
    elif what == "train":
        _print_train(options, steps, as_json)
    elif what == "data":
        _print_data(options, steps, gib, as_json)
    elif what in MEASURES:
        measure, columns = MEASURES[what]
        print_rows(measure(options.overrides, steps, rounds), columns, as_json)
    else:
        measures = ["train", "data", *SPEED_MEASURES, *MEASURES]
        raise EcditError(f"ecdit bench {what!r} does not exist.", did_you_mean(what, measures))


def _print_train(options: SpeedOptions, steps: int, as_json: bool) -> None:
    """Prints two tables, or one JSON list, in which the rows of the second table have the key `what`."""
    speed = [*bench_training(options, steps, _progress), *bench_dropless(options, steps, _progress)]
    shares = _bench_train(options.overrides, steps)  # last, because runs that have ended keep their memory
    if as_json:
        print_json([{key: value for key, value in row.items() if value is not None} for row in [*shares, *speed]])
        return
    print_rows(shares, TRAIN_COLUMNS, as_json=False)
    print_rows(speed, SPEED_COLUMNS, as_json=False)


def _print_data(options: SpeedOptions, steps: int, gib: float, as_json: bool) -> None:
    """Prints two tables, or one JSON list, in which the rows of the second table have the key `what`."""
    from ecdit_cli._reading import READING_COLUMNS, bench_reading

    drawn = _bench_data(options.overrides, steps)
    read = bench_reading(gib, options.rounds, options.clock, _progress)
    if as_json:
        print_json([*drawn, *read])
        return
    print_rows(drawn, DATA_COLUMNS, as_json=False)
    print_rows(read, READING_COLUMNS, as_json=False)


def _bench_train(overrides: list[str], steps: int) -> Rows:
    from experiments.config.overrides import load_config

    configs = [load_config([*overrides, f"routing={name}"]) for name in ROUTERS]
    with _progress("training", len(configs)) as advance:
        from experiments.benchmarks.step_shares import measure_step_shares
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(configs[0])
        rows = []
        for config in configs:
            settings = {"model": config.model.name, "routing": config.routing.name, "steps": steps}
            rows.append({**settings, "batch_images": config.train.batch_images, **measure_step_shares(config, steps)})
            advance()
        return rows


def _bench_data(overrides: list[str], steps: int) -> Rows:
    """Measures how fast images are drawn and trained on by a dense model, which is the fastest to train."""
    from experiments.config.overrides import load_config

    config = load_config(["routing=dense", *overrides])
    with _progress("drawing and training", 2) as advance:
        from experiments.benchmarks.drawing import measure_loader
        from experiments.benchmarks.step_shares import measure_step_shares
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(config)
        loader = measure_loader(config, NUM_LOADED_IMAGES)
        advance()
        trained = measure_step_shares(config, steps)["images_per_second"]
    drawn = loader.pop("images_per_second")
    return [
        {
            "model": config.model.name,
            "routing": config.routing.name,
            **loader,
            "loader_images_per_second": drawn,
            "training_images_per_second": trained,
            "ratio": drawn / trained,
        }
    ]


def _bench_checkpoint(overrides: list[str], steps: int, rounds: int) -> Rows:
    """Measures `rounds` saves that are `steps` iterations apart."""
    from experiments.config.overrides import load_config

    config = load_config(overrides)
    with _progress("training and saving", 1 + (rounds + 1) * steps) as advance:
        from experiments.benchmarks.saving_cost import measure_saving
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(config)
        cost = measure_saving(config, steps, rounds, advance)
    settings = {"model": config.model.name, "routing": config.routing.name, "num_experts": config.routing.num_experts}
    return [{**settings, **cost, "limit": STALL_LIMIT}]


def _bench_cli(overrides: list[str], steps: int, rounds: int) -> Rows:
    from ecdit_cli._startup import LIMIT_SECONDS, measure_commands

    with _progress("starting commands", rounds * len(LIMIT_SECONDS)) as advance:
        return measure_commands(rounds, overrides, advance)


def _bench_sweep(overrides: list[str], steps: int, rounds: int) -> Rows:
    import tempfile
    from pathlib import Path

    from sweeps.executor_bench import measure_sweep

    with tempfile.TemporaryDirectory() as folder, _progress("sweeping", 4) as advance:
        return measure_sweep(Path(folder), overrides, on_part=advance)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    with progress(name) as display:
        yield display.counter(total)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


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
STALL_LIMIT = 0.05
"""The largest share of training that saves may cost at the cadence of a run."""
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
MEASURES: dict[str, tuple[Callable[[list[str], int, int], Rows], tuple[Column, ...]]] = {
    "checkpoint": (_bench_checkpoint, CHECKPOINT_COLUMNS),
    "cli": (_bench_cli, CLI_COLUMNS),
    "sweep": (_bench_sweep, SWEEP_COLUMNS),
}
SPEED_MEASURES: dict[str, Callable[[SpeedOptions, Callable[..., Any]], Rows]] = {
    "routing": bench_routing,
    "sample": bench_sample,
}
