"""Measures which share of a training iteration is forward, backward and optimizer, and what the loop itself costs.

It makes a short run with the real loop and a clock, in a temporary folder. An iteration is the time from one step to
the next and includes waiting for data, the moving average, reading the loss back, rows and status. Validation and
checkpoints happen only at the end and are not included. `ecdit bench train` prints the result.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.config.cooldown import NO_COOLDOWN
from experiments.config.schema import RunConfig
from experiments.records.run_folder import RunDir
from experiments.training.clock import RecordingClock, synchronized_time
from experiments.training.loop import train
from experiments.training.reporter import Reporter

WARM_UP_STEPS = 5
PARTS = ("forward", "backward", "optimizer")


def measure_step_shares(config: RunConfig, steps: int) -> dict[str, float]:
    """Returns medians over `steps` iterations after a warm-up.

    They are `<part>_seconds` for forward, backward and optimizer, `iteration_seconds`, `other_seconds` (the rest),
    `compute_share` (the three parts over the iteration) and `images_per_second`. Rows are written at every iteration,
    which is more often than in a normal run.
    """
    clock = RecordingClock()
    iterations: list[dict[str, float]] = []
    last = [0.0]

    def on_step(images_seen: int) -> None:
        now = synchronized_time()
        iterations.append({**clock.take(), "iteration": now - last[0]})
        last[0] = now

    with tempfile.TemporaryDirectory() as folder:
        short = short_run(config, steps + WARM_UP_STEPS)
        train(short, RunDir(Path(folder)), ["ecdit", "bench", "train"], Reporter(step=on_step), clock=clock)
    # The first entry is the call before any step, and its time is not that of an iteration.
    return _medians(iterations[1 + WARM_UP_STEPS :], config.train.batch_images)


def _medians(iterations: Sequence[dict[str, float]], batch_images: int) -> dict[str, float]:
    """Returns the medians of `measure_step_shares` from the seconds of each part in each iteration."""
    seconds = {name: statistics.median(one[name] for one in iterations) for name in (*PARTS, "iteration")}
    share = statistics.median(sum(one[name] for name in PARTS) / one["iteration"] for one in iterations)
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "other_seconds": statistics.median(one["iteration"] - sum(one[name] for name in PARTS) for one in iterations),
        "compute_share": share,
        "images_per_second": batch_images / seconds["iteration"],
    }


def short_run(config: RunConfig, steps: int) -> RunConfig:
    """Returns a config for `steps` steps of `config` with a row each, a small evaluation at the end, and no mirror."""
    images = steps * config.train.batch_images
    changes = {
        "train": {"images": images},
        "optim": NO_COOLDOWN,
        "log": {"every_images": config.train.batch_images},
        "eval": {
            "every_images": images,
            "images": min(config.eval.batch_images, config.eval.images),
            "sample_images": 0,
        },
        "checkpoint": {"every_images": images},
        "wandb": {"mode": "disabled"},
    }
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    return config.model_copy(update=sections)
