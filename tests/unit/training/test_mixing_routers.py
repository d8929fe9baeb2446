"""Runs of routers that mix tokens into slots, or that change whole blocks, stop and continue like any other."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.config.memory import memory
from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.evaluation.sampling.load_run import load_run
from experiments.records.run_folder import RunDir
from experiments.training.loop import train
from experiments.training.reporter import Reporter
from experiments.training.simulation import simulate_step

MIXING = [name for name, row in ROUTERS.items() if row.rule in ("soft", "blocks")]
CLOCK = ("seconds", "images_per_second")


def rows(run_dir: RunDir) -> list[dict[str, Any]]:
    found = [json.loads(line) for path in (run_dir.steps, run_dir.routing) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in found]


def stop_at_40(images_seen: int) -> None:
    if images_seen == 40:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("router", MIXING)
def test_a_run_that_was_stopped_continues_with_the_same_numbers(
    router: str, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny(f"routing={router}", "model.sparse_layers=all", "train.mask_ratio=0.5", "optim.learning_rate=1e-2")
    whole, stopped = RunDir(tmp_path / "whole"), RunDir(tmp_path / "stopped")
    assert train(config, whole, ["test"]) == "done"
    assert train(config, stopped, ["test"], Reporter(step=stop_at_40)) == "interrupted"
    assert train(config, stopped, ["test"]) == "done"
    assert rows(stopped) == rows(whole)
    weights = [dict(load_run(run_dir, "raw", pytest.fail).model.named_parameters()) for run_dir in (whole, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("router", MIXING)
def test_memory_of_a_simulated_step_is_that_of_the_arithmetic(router: str, precision: str, checkpointing: bool) -> None:
    config = load_config(
        [
            *("model=micro", f"routing={router}", "parallel.world=8", "train.batch_images=32"),
            f"train.precision={precision}", f"parallel.activation_checkpointing={checkpointing}",
        ]
    )  # fmt: skip
    measured, planned = simulate_step(config, precision), memory(config, on_accelerator=False)
    assert measured.persistent == pytest.approx(planned.persistent, rel=0.01)
    assert measured.activations == pytest.approx(planned.activations, rel=0.05)
