"""Tiny runs and engines of one process. More processes, signals and exit codes are for `tests/integration`."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.records.run_folder import RunDir
from experiments.training.engine import Engine, build_engine, process_group
from experiments.training.loop import train
from experiments.training.objective import forward_loss, micro_batches_of, to_device
from experiments.training.schedule import learning_rate

TINY = (
    *("model=nano", "model.width=32", "model.num_layers=2", "train.images=64", "train.batch_images=8"),
    *("train.precision=fp32", "optim.warmup_images=16", "log.every_images=8", "wandb.mode=disabled"),
    *("eval.every_images=32", "eval.images=8", "eval.batch_images=8", "eval.sample_images=0"),
)
Rows = list[dict[str, Any]]


@pytest.fixture
def tiny() -> Callable[..., RunConfig]:
    """8 steps of 8 images on a model of 2 layers, a row after each."""
    return lambda *overrides: load_config([*TINY, *overrides])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    with process_group(tmp_path / "log.txt"):
        yield
    gc.collect()  # ZeRO-3 has a bucket of 2 GiB, in cycles that only the collector ends


@pytest.fixture
def advance(tiny: Callable[..., RunConfig]) -> Callable[..., list[float]]:
    """Really train an engine over some steps, and return the losses."""

    def run(engine: Engine, config: RunConfig, start: int, num_steps: int) -> list[float]:
        losses, stream = [], TrainStream(config)
        for number in range(start, start + num_steps):
            images_seen = number * config.train.batch_images
            engine.set_learning_rate(learning_rate(config, images_seen))
            engine.routers.begin(images_seen)
            batch, step_losses = to_device(stream.batch(images_seen), engine.device), []
            for micro in micro_batches_of(batch, config.train.accumulation):
                loss_B, output = forward_loss(engine.deepspeed, micro, config)
                engine.routers.observe(output.feed_forward)
                engine.deepspeed.backward(loss_B.mean() + output.auxiliary_loss)
                engine.deepspeed.step()
                step_losses.append(loss_B.mean().item())
            engine.routers.step(engine.world)
            engine.ema.update(images_seen + config.train.batch_images, config.train.batch_images)
            losses.append(sum(step_losses) / len(step_losses))
        return losses

    return run


@pytest.fixture
def build(one_process: None) -> Callable[[RunConfig], Engine]:
    """The engine of a config, in fp32."""
    return lambda config: build_engine(config, "fp32")


@pytest.fixture
def rows_of(tmp_path: Path, tiny: Callable[..., RunConfig]) -> Callable[..., Rows]:
    """The rows of `steps.jsonl` of a tiny run with these settings."""

    def run(*overrides: str, name: str = "run") -> Rows:
        run_dir = RunDir(tmp_path / name)
        assert train(tiny(*overrides), run_dir, ["test"]) == "done"
        return [json.loads(line) for line in run_dir.steps.read_text().splitlines()]

    return run
