"""A trained model from its run folder, without DeepSpeed's engine and without executing anything that was saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from experiments.config.schema import RunConfig
from experiments.errors import CheckpointError, ConfigError
from experiments.models.dit import DiT
from experiments.records.layout import RunDir
from experiments.records.schema import Precision, RunRecord, Weights
from experiments.training.checkpoint import load_newest
from experiments.training.engine import prefer_large_pages

FILE_OF_WEIGHTS = {"raw": "weights", "ema": "ema"}


@dataclass(frozen=True)
class LoadedRun:
    """A model in evaluation mode, and where it comes from."""

    run_dir: RunDir
    record: RunRecord
    config: RunConfig
    model: DiT
    images_seen: int
    weights: Weights
    precision: Precision


def load_run(
    run_dir: RunDir, weights: Weights, say: Callable[[str], None], precision: Precision | None = None
) -> LoadedRun:
    """The newest whole checkpoint of a run, on the current device; in the precision it was trained in unless given.

    Raises `RecordError` for what is not a run, and `CheckpointError` where it has no checkpoint.
    """
    record = run_dir.read_run()
    config = RunConfig.model_validate(record.config)
    prefer_large_pages(config)
    name = FILE_OF_WEIGHTS[weights]
    checkpoint = load_newest(run_dir, record.config_id, say, files=[name])
    if checkpoint is None:
        raise CheckpointError(f"{run_dir.path} has no checkpoint yet.", "Train it first, with the same command again.")
    model = DiT(config)
    model.load_state_dict(checkpoint.full(name))
    precision = precision or record.precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = model.to(device=current_device(), dtype=dtype).eval()
    return LoadedRun(run_dir, record, config, model, int(checkpoint.state["images_seen"]), weights, precision)


def require_shapes(run: LoadedRun) -> LoadedRun:
    """The run; a `ConfigError` where it makes latents, of which nothing that judges shapes can be measured."""
    if run.config.data.name != "shapes":
        raise ConfigError(
            f"{run.run_dir.path} was trained with data.name={run.config.data.name}: this is measured on shapes only.",
            "Its validation loss is in evals.jsonl; for images use `ecdit sample`.",
        )
    return run


def current_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
