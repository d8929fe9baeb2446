"""A trained model from its run folder or its exported weights, without DeepSpeed's engine and without executing
anything that was saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.config.stored import stored_config
from experiments.errors import CheckpointError, ConfigError
from experiments.evaluation.exported import DTYPES, FILE_OF_WEIGHTS, exported_tensors, newest, read_exported
from experiments.evaluation.replay import allow_replay
from experiments.models.dit import DiT
from experiments.records.layout import RunDir
from experiments.records.schema import Precision, RunRecord, Weights
from experiments.training.host_memory import prefer_large_pages


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

    The same from a folder of `ecdit export-weights`. Raises `RecordError` for what is neither, and `CheckpointError`
    where there is no checkpoint, or weights do not fit the model.
    """
    if run_dir.exported.is_file():
        return _load_exported(run_dir, weights, precision)
    record, checkpoint = newest(run_dir, weights, say)
    prefer_large_pages(stored_config(record.config, run_dir.run_json))
    images_seen = int(checkpoint.state["images_seen"])
    tensors = checkpoint.full(FILE_OF_WEIGHTS[weights])
    return _loaded(run_dir, record, tensors, images_seen, weights, precision or record.precision)


def _load_exported(folder: RunDir, weights: Weights, precision: Precision | None) -> LoadedRun:
    exported = read_exported(folder)
    if exported.weights != weights:
        raise ConfigError(f"{folder.path} holds {exported.weights} weights.", f"Use --weights {exported.weights}.")
    prefer_large_pages(stored_config(exported.record.config, folder.exported))
    tensors = exported_tensors(folder, exported)
    return _loaded(folder, exported.record, tensors, exported.images_seen, weights, precision or exported.precision)


def _loaded(
    run_dir: RunDir,
    record: RunRecord,
    tensors: Mapping[str, Tensor],
    images_seen: int,
    weights: Weights,
    precision: Precision,
) -> LoadedRun:
    config = stored_config(record.config, run_dir.path)
    model = DiT(config)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise CheckpointError(f"The weights in {run_dir.path} are not those of its model.", "Export the run again.")
    model.load_state_dict(tensors)
    model = model.to(device=current_device(), dtype=DTYPES[precision]).eval()
    return LoadedRun(run_dir, record, config, allow_replay(model), images_seen, weights, precision)


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
