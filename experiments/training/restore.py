"""Copies the engine's state into a snapshot for a checkpoint, and restores it from a checkpoint of any layout.

All tensors are fp32 stretches of parameters (`partitions.py`). `checkpoint_files.py` describes the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.distributed.agreement import first_trouble, of_the_first
from experiments.errors import CheckpointError
from experiments.records.run_folder import RunDir
from experiments.training.checkpoint import Checkpoint, load_newest
from experiments.training.checkpoint_contents import LOSS, tensor_key
from experiments.training.checkpoint_files import TrainingState, drop_leftovers
from experiments.training.checkpoint_list import START_ANEW, complete_checkpoints
from experiments.training.engine import Engine
from experiments.training.partitions import Partitions
from experiments.training.reporter import Reporter
from experiments.training.router_states import load_router_state, router_state


def snapshot(engine: Engine) -> TrainingState:
    """Copies what this process saves to host memory, so that training can continue at once. Not collective."""
    partitions = engine.partitions
    weights = _copied(partitions, partitions.flats)
    averages: dict[str, Tensor] = {}
    for key, flats in zip(engine.ema.keys, engine.ema.averages, strict=True):
        averages |= _copied(partitions, flats, key)
    states = [engine.optimizer.state[key] for key in partitions.keys]
    optimizer: dict[str, Tensor] = {}
    counters: dict[str, float] = {}
    for name, first in states[0].items():
        if first.dim() == 0:
            counters[name] = float(first)
        else:
            optimizer |= _copied(partitions, [state[name].view(-1) for state in states], name)
    bounds = {
        stretch.name: (stretch.start, stretch.start + stretch.numbers.numel())
        for stretch in partitions.stretches(partitions.flats)
    }
    tensors = {"weights": weights, "ema": averages, "optimizer": optimizer}
    return TrainingState(tensors, bounds, counters, engine.ema.widths, router_state(engine.model))


def newest_checkpoint(engine: Engine, run_dir: RunDir, config_id: str, reporter: Reporter) -> Checkpoint | None:
    """Opens the checkpoint from which all processes continue; each checks the shards that it will read. Collective."""
    if engine.rank == 0:
        drop_leftovers(run_dir)
    return load_newest(
        run_dir,
        config_id,
        reporter.warn if engine.rank == 0 else lambda message: None,
        wanted=engine.partitions.wanted(),
        paths=of_the_first(lambda: complete_checkpoints(run_dir), engine.rank, engine.world),
        agree=lambda trouble: first_trouble(trouble, engine.world),
    )


def require_same_loss(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raises `CheckpointError` where an earlier version began the run and trained on another loss with these settings.

    The balance loss was the mean over the routed layers, and is now the sum. A run that changed its loss midway would
    be compared as if it had one loss.
    """
    num_layers, weight = len(config.sparse_layer_indices), config.routing.balance_loss_weight
    if config.has_balance_losses and not LOSS.items() <= checkpoint.state.items():
        raise CheckpointError(
            f"{checkpoint.path} is of a version of ecdit whose balance loss was the mean over the {num_layers} routed "
            f"layers; it is now their sum, {num_layers} times as strong with routing.balance_loss_weight={weight:g}.",
            f"Continue with that version, or {START_ANEW}",
        )


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Restores weights, moving averages, optimizer state and router state from `checkpoint`. Collective.

    Raises `CheckpointError` where the checkpoint has other parameters, averages or routers than the engine.
    """
    partitions = engine.partitions
    if checkpoint.shapes != partitions.shapes:
        raise CheckpointError(f"{checkpoint.path} holds other parameters than this model.", "Use another --run-dir.")
    if checkpoint.ema_widths != engine.ema.widths:
        raise CheckpointError(
            f"{checkpoint.path} holds averages of the widths {list(checkpoint.ema_widths)}, and this training keeps "
            f"{list(engine.ema.widths)}.",
            "Continue with the train.ema and the version of ecdit that wrote it, or use another --run-dir.",
        )
    load_router_state(engine.model, checkpoint.state, checkpoint.path)
    partitions.fill(lambda name, start, stop: checkpoint.read("weights", name, start, stop), partitions.flats)
    partitions.refresh_module()
    for average, flats in zip(engine.ema.keys, engine.ema.averages, strict=True):
        partitions.fill(partial(checkpoint.read, "ema", state=average), flats)
    restore_optimizer(engine, checkpoint, partial(checkpoint.read, "optimizer"))


def restore_optimizer(engine: Engine, checkpoint: Checkpoint, read: Callable[[str, int, int, str], Tensor]) -> None:
    """Restores every kind of optimizer state that `checkpoint` holds, such as `exp_avg`, and the counts of steps.

    `read` takes (name, start, stop, state) and returns these elements of the state of one parameter.
    """
    partitions = engine.partitions
    for state in checkpoint.state["optimizer_states"]:
        filled = [torch.zeros_like(flat) for flat in partitions.flats]
        partitions.fill(partial(_read_state, read, state), filled)
        for key, flat in zip(partitions.keys, filled, strict=True):
            engine.optimizer.state[key][state] = flat.view(key.shape)
    for key in partitions.keys:
        for name, value in checkpoint.state["optimizer_counters"].items():
            # torch's optimizers count their steps in a float32 tensor of their own for each parameter, which a fused
            # one keeps on the device of the parameter, and the others on the CPU.
            device = key.device if engine.optimizer.defaults.get("fused") else "cpu"
            engine.optimizer.state[key][name] = torch.tensor(value, dtype=torch.float32, device=device)


def _read_state(read: Callable[[str, int, int, str], Tensor], state: str, name: str, start: int, stop: int) -> Tensor:
    return read(name, start, stop, state)


def _copied(partitions: Partitions, flats: list[Tensor], state: str = "") -> dict[str, Tensor]:
    """Copies stretches to host memory, by name and state; a whole parameter keeps its shape, and a part is flat."""
    copies = {}
    for name, start, numbers in ((s.name, s.start, s.numbers) for s in partitions.stretches(flats)):
        whole = numbers.numel() == math.prod(partitions.shapes[name])
        assert not (whole and start), f"{name} begins at {start}"
        shape = partitions.shapes[name] if whole else (-1,)
        # It must be a copy on a processor too, because training changes the weights while a thread writes them to disk.
        copies[tensor_key(name, state)] = numbers.to("cpu", copy=True).view(shape)
    return copies
