"""Between the engine and a checkpoint: what is saved, and how training goes on from it.

Everything is gathered into full fp32 tensors by parameter name (`partitions.py`), so what is saved does not know on how
many processes it was trained. The files are `checkpoint.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.errors import CheckpointError, EcditError, StorageError
from experiments.records.layout import RunDir
from experiments.routing.deepspeed_library import dist
from experiments.training.checkpoint import Checkpoint, write_checkpoint
from experiments.training.engine import Engine


def save(engine: Engine, run_dir: RunDir, config_id: str, state: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint at `state["images_seen"]`. Collective: when it cannot be written, every process raises."""
    tensors = {
        "weights": _gather(engine, engine.partitions.flats),
        "ema": _gather(engine, engine.ema.flats),
        "optimizer": _gather_optimizer(engine),
    }
    trouble: list[EcditError | None] = [None]
    if engine.rank == 0:
        try:
            write_checkpoint(run_dir, config_id, state, tensors, keep)
        except StorageError as error:
            trouble[0] = error
    if engine.world > 1:
        dist.broadcast_object_list(trouble, src=0)
    if trouble[0] is not None:
        raise trouble[0]


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Continue from `checkpoint`: master weights, module weights, moving average and optimizer state."""
    weights = checkpoint.tensors["weights"]
    expected = {name: tuple(p.shape) for name, p in engine.partitions.parameters.items()}
    if {name: tuple(t.shape) for name, t in weights.items()} != expected:
        raise CheckpointError(f"{checkpoint.path} holds other parameters than this model.", "Use another --run-dir.")
    engine.partitions.scatter(weights)
    engine.partitions.refresh_module()
    engine.ema.load(checkpoint.tensors["ema"])
    _scatter_optimizer(engine, checkpoint.tensors["optimizer"])


def _gather(engine: Engine, flats: Sequence[Tensor], suffix: str = "") -> dict[str, Tensor]:
    """Full tensors by name, in the memory of the process that writes; elsewhere nothing. Collective."""
    full_tensors = engine.partitions.full_tensors(flats)
    return {name + suffix: full.cpu() for name, full in full_tensors if engine.rank == 0}


def _gather_optimizer(engine: Engine) -> dict[str, Tensor]:
    """Tensors of the weights' layout as `<parameter>/<state>`, and counters once as `/<state>`."""
    states = [engine.optimizer.state[flat] for flat in engine.partitions.flats]
    gathered: dict[str, Tensor] = {}
    for key, first in states[0].items():
        if first.dim() == 0:
            gathered[f"/{key}"] = first.detach().cpu().clone()
        else:
            gathered |= _gather(engine, [state[key] for state in states], f"/{key}")
    return gathered


def _scatter_optimizer(engine: Engine, saved: Mapping[str, Tensor]) -> None:
    for key in {name.rpartition("/")[2] for name in saved}:
        counter = saved.get(f"/{key}")
        flats = [torch.zeros_like(flat) for flat in engine.partitions.flats]
        if counter is None:
            engine.partitions.scatter({n: saved[f"{n}/{key}"] for n in engine.partitions.parameters}, flats)
        for flat, value in zip(engine.partitions.flats, flats, strict=True):
            engine.optimizer.state[flat][key] = value if counter is None else counter.clone()
