"""Loads a trained model from its run folder or its exported weights, without DeepSpeed's engine.

Nothing that was saved is executed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.config.stored import buildable_config
from experiments.config.tensors import tensor_sizes
from experiments.errors import CheckpointError, ConfigError
from experiments.evaluation.exchange.exported_weights import newest
from experiments.evaluation.sampling.finite import require_finite_weights
from experiments.evaluation.sampling.replay import allow_replay
from experiments.models.dit import DiT
from experiments.plugins.runs import require_plugins
from experiments.records.exported_record import read_exported
from experiments.records.record_types import FILE_OF_WEIGHTS, Precision, RunRecord, Weights
from experiments.records.run_folder import RunDir
from experiments.training.exported_tensors import DTYPES, exported_shapes, exported_tensors
from experiments.training.router_states import KEY as ROUTER_STATE
from experiments.training.router_states import load_router_state


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
    ema_width: float | None = None
    """The width of the average, where it was reconstructed."""


def load_run(
    run_dir: RunDir,
    weights: Weights | None,
    say: Callable[[str], None],
    precision: Precision | None = None,
    ema_width: float | None = None,
) -> LoadedRun:
    """Loads the newest whole checkpoint of a run, or a folder of `ecdit export-weights`, to the current device.

    Where `weights` is None they are the moving average of a run, or those that were exported. The model is in the
    precision it was trained or exported in, unless `precision` is given. With `ema_width` its weights are the average
    of this width, which is reconstructed (`reconstructed_average.py`). Raises `RecordError` for what is neither, and
    for settings of which no model can be built; `CheckpointError` where there is no checkpoint, or where weights do not
    fit the model or are not finite. Until it is known that the weights fit, nothing larger than their files is
    allocated.
    """
    if os.path.lexists(run_dir.exported):
        if ema_width is not None:
            raise ConfigError(
                f"{run_dir.path} holds exported weights, of which no other average can be made.",
                "Leave out --ema, or export the run again with --ema.",
            )
        return _load_exported(run_dir, weights, precision)
    weights = weights or "ema"
    record, checkpoint = newest(run_dir, weights, say, ema_width)
    require_plugins(record, run_dir.run_json)
    config = buildable_config(record.config, run_dir.run_json)
    require_same_sizes(config, checkpoint.shapes, run_dir.path)
    images_seen = int(checkpoint.state["images_seen"])
    tensors = checkpoint.full(FILE_OF_WEIGHTS[weights])
    precision = precision or record.precision
    state = checkpoint.state
    return _loaded(run_dir, record, config, tensors, state, images_seen, weights, precision, ema_width)


def _load_exported(folder: RunDir, weights: Weights | None, precision: Precision | None) -> LoadedRun:
    exported = read_exported(folder)
    if weights not in (None, exported.weights):
        raise ConfigError(f"{folder.path} holds {exported.weights} weights.", f"Use --weights {exported.weights}.")
    require_plugins(exported.record, folder.exported)
    config = buildable_config(exported.record.config, folder.exported)
    require_same_sizes(config, exported_shapes(folder, exported), folder.path)
    tensors = exported_tensors(folder, exported)
    precision = precision or exported.precision
    state = {ROUTER_STATE: exported.router_state or {}}
    return _loaded(folder, exported.record, config, tensors, state, exported.images_seen, exported.weights, precision)


def _loaded(
    run_dir: RunDir,
    record: RunRecord,
    config: RunConfig,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    images_seen: int,
    weights: Weights,
    precision: Precision,
    ema_width: float | None = None,
) -> LoadedRun:
    model = DiT(config)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise _not_of_this_model(run_dir.path)
    model.load_state_dict(tensors, strict=False)  # the names are checked; the buffers come from the state
    load_router_state(model, state, run_dir.path)
    model = model.to(dtype=DTYPES[precision]).eval()
    require_finite_weights(model.named_parameters(), str(run_dir.path))
    model = model.to(device=current_device())
    return LoadedRun(run_dir, record, config, allow_replay(model), images_seen, weights, precision, ema_width)


def require_same_sizes(config: RunConfig, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises `CheckpointError` unless tensors of these shapes have the sizes of the parameters of `config`.

    The sizes are computed from the config, and lazily, because a config from elsewhere may ask for 10^7 layers: to
    build that model, only to find that it does not fit, would take all memory.
    """
    expected = (size.elements for size in tensor_sizes(config))
    if sorted(islice(expected, len(shapes) + 1)) != sorted(map(math.prod, shapes.values())):
        raise _not_of_this_model(path)


def _not_of_this_model(path: Path) -> CheckpointError:
    return CheckpointError(
        f"The weights in {path} are not those of its model: they have other shapes than its settings give.",
        "Export the run again.",
    )


def current_device() -> torch.device:
    """Returns the accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
