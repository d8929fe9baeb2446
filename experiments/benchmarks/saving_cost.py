"""Measures how much checkpoints slow training down, for `ecdit bench checkpoint`.

A short run with the real loop saves repeatedly. Of the iterations between two saves, the first half contains the save
and the second half does not, so their difference in time is its cost: the copy to host memory, the thread that writes
beside the training, and the renaming at the end. Adjacent halves are compared because the speed of machines drifts. At
the interval of the config (`checkpoint.every_images`) this cost is spread over that many iterations.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.benchmarks.step_shares import short_run
from experiments.config.schema import RunConfig
from experiments.records.run_folder import RunDir
from experiments.training.checkpoint_list import complete_checkpoints
from experiments.training.clock import synchronized_time
from experiments.training.loop import train
from experiments.training.reporter import Reporter


def measure_saving(config: RunConfig, steps: int, rounds: int, on_step: Callable[[], None]) -> dict[str, Any]:
    """Returns medians over `rounds` saves, `steps` iterations apart; half of these must suffice to write one.

    They are `iteration_seconds`, `copy_seconds` (in which training waits), `extra_seconds` (the whole cost of a save),
    `checkpoint_bytes`, `cadence_iterations` (between saves at the config's interval) and `stall_share` (the extra
    seconds relative to the time of these iterations).
    """
    moments: list[float] = []
    copies: list[list[float]] = []

    def stepped(images_seen: int) -> None:
        moments.append(synchronized_time())
        on_step()

    def phase(name: str) -> None:
        if name == "saving":
            copies.append([synchronized_time()])
        elif copies and len(copies[-1]) == 1:
            copies[-1].append(synchronized_time())

    with tempfile.TemporaryDirectory() as folder:
        batch, run_dir = config.train.batch_images, RunDir(Path(folder))
        longer = short_run(config, (rounds + 1) * steps)
        saving = longer.model_copy(
            update={"checkpoint": longer.checkpoint.model_copy(update={"every_images": steps * batch})}
        )
        train(saving, run_dir, ["ecdit", "bench", "checkpoint"], Reporter(step=stepped, phase=phase))
        size = sum(file.stat().st_size for file in complete_checkpoints(run_dir)[-1].iterdir())
    iterations = [after - before for before, after in pairwise(moments)]
    half = steps // 2
    halves = [
        (iterations[n : n + half], iterations[n + half : n + 2 * half]) for n in range(steps, len(iterations), steps)
    ]
    plain = statistics.median(seconds for _, quiet in halves for seconds in quiet)
    extra = statistics.median(sum(busy) - sum(quiet) for busy, quiet in halves[:rounds])
    cadence = max(1, config.checkpoint.every_images // batch)
    return {
        "iteration_seconds": plain,
        "copy_seconds": statistics.median(after - before for before, after in copies[:rounds]),
        "extra_seconds": extra,
        "checkpoint_bytes": size,
        "cadence_iterations": cadence,
        "stall_share": extra / (cadence * plain),
    }
