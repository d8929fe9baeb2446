"""Measures how fast this machine trains: a few steps of real training, timed in a process of their own.

The planning process never imports torch. The result is model FLOP/s (FLOPs of the forward and backward pass, as
budgeted, over the seconds of an iteration). It holds for similar models only: small models are slower per FLOP, and
routers differ. `calibrate_plan` therefore measures the cheapest and the most expensive model of a plan, and
`interpolate` is used for those in between. A model that does not fit here or would take too long is not started, since
its memory and FLOPs are known before any training.
"""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from experiments.config.budget import budget
from experiments.config.cooldown import NO_COOLDOWN
from experiments.config.schema import RunConfig
from experiments.environment import child_environment
from experiments.errors import SpecError
from experiments.records.run_folder import RunDir
from sweeps.device_slots import visible_cores
from sweeps.plan import Plan

STEPS = ((3, 8), (1, 2))
"""Pairs of steps to warm up and steps to time. The short pair is for models of which many steps would take too long."""
PLANNED_SECONDS = 60.0
"""The longest time that timing one model may take, as predicted from its FLOPs."""
FLOPS_PER_SECOND_OF_CORE, FLOPS_PER_SECOND_OF_ACCELERATOR = 3e10, 1e13
"""The speeds that this prediction assumes. One core of the machines where it was tried reached 1.4e10 to 3.1e10."""
TIMEOUT_SECONDS = 300.0
TRAIN = (sys.executable, "-m", "ecdit_cli", "train")


@dataclass(frozen=True)
class SpeedPoint:
    """The speed that one model reached in one process of this machine."""

    train_flops_per_image: int
    flops_per_second: float


def calibrate(
    config: RunConfig,
    num_threads: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    command: Sequence[str] = TRAIN,
    steps: tuple[int, int] = STEPS[0],
) -> float:
    """Returns the FLOP/s of one process that trains `config` here with `num_threads` cores (default: all).

    It takes the start of Python and torch, and then `steps`. Raises `SpecError` when the training fails or takes longer
    than `timeout_seconds`.
    """
    num_warm_up, num_timed = steps
    short = _short(config, num_warm_up + num_timed)
    with tempfile.TemporaryDirectory() as folder:
        file, run_dir = Path(folder) / "config.yaml", RunDir(Path(folder) / "run")
        file.write_text(yaml.safe_dump(short.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        _train([*command, "--config", str(file), "--run-dir", str(run_dir.path)], num_threads, timeout_seconds)
        rows = run_dir.read_rows(run_dir.steps).rows
    # The median is not moved by single steps that something else on the machine has slowed down.
    rates = [float(row["images_per_second"]) for row in rows[num_warm_up:]]
    return statistics.median(rates) * budget(short).train_flops_per_image


def calibrate_plan(
    plan: Plan,
    num_threads: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    command: Sequence[str] = TRAIN,
    has_room: Callable[[RunConfig], bool] = lambda config: True,
    assumed_flops_per_second: float | None = None,
) -> tuple[SpeedPoint, ...]:
    """Times the models of `plan` with the fewest and the most FLOPs for an image, among those that can be timed here.

    A model cannot be timed where `has_room` is False for its short training, or where that would take more than
    `PLANNED_SECONDS` at `assumed_flops_per_second` (default: that of `num_threads` cores). Returns one point where the
    two models are the same, and none where no model can be timed.
    """
    speed = assumed_flops_per_second or (num_threads or len(visible_cores())) * FLOPS_PER_SECOND_OF_CORE
    by_cost = {run.train_flops_per_image: run.config for run in plan.wanted}

    def first(costs: Iterable[int]) -> tuple[int, RunConfig, tuple[int, int]] | None:
        for cost in costs:
            config = RunConfig.model_validate(by_cost[cost])
            for steps in STEPS:
                short = _short(config, sum(steps))
                if short.total_images * cost <= PLANNED_SECONDS * speed and has_room(short):
                    return cost, config, steps
        return None

    ends = (first(sorted(by_cost)), first(sorted(by_cost, reverse=True)))
    chosen = {end[0]: end for end in ends if end is not None}
    return tuple(
        SpeedPoint(cost, calibrate(config, num_threads, timeout_seconds, command, steps))
        for cost, config, steps in chosen.values()
    )


def interpolate(points: Sequence[SpeedPoint], train_flops_per_image: int) -> float:
    """Returns the FLOP/s for a model: linear between the logarithms of two points, constant beyond them."""
    assert points, "nothing was measured"
    ordered = sorted(points, key=lambda point: point.train_flops_per_image)
    if train_flops_per_image <= ordered[0].train_flops_per_image:
        return ordered[0].flops_per_second
    for low, high in itertools.pairwise(ordered):
        if train_flops_per_image <= high.train_flops_per_image:
            start, end = math.log(low.train_flops_per_image), math.log(high.train_flops_per_image)
            share = (math.log(train_flops_per_image) - start) / (end - start)
            return math.exp((1 - share) * math.log(low.flops_per_second) + share * math.log(high.flops_per_second))
    return ordered[-1].flops_per_second


def _train(command: Sequence[str], num_threads: int | None, timeout_seconds: float) -> None:
    environment = child_environment({} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)})
    hint = "Use --device to price the plan from a table, or leave the calibration out."
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise SpecError(f"the calibration did not end in {timeout_seconds:.0f} s.", hint) from None
    if ended.returncode != 0:
        last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "no message")
        raise SpecError(f"the calibration failed: {last.strip()}", hint)


def _short(config: RunConfig, num_steps: int) -> RunConfig:
    """Returns `config` shortened to `num_steps` steps of one process, with its micro batch and hardly any evaluation.

    Every step writes a row of its own, whose rate is then read.
    """
    batch = config.micro_batch_images * config.train.accumulation
    images = num_steps * batch
    changes = {
        "train": {"images": images, "batch_images": batch},
        "optim": NO_COOLDOWN,
        "log": {"every_images": batch},
        "eval": {
            "every_images": images, "images": config.eval.batch_images, "sample_images": 0, "metric_images": 0,
        },
        "checkpoint": {"every_images": images},
        "parallel": {"world": 1, "expert_parallel": 1},
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    )
