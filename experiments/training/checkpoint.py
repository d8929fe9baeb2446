"""Checkpoints that are complete or invisible, keyed by parameter name.

`checkpoints/images_000012800/` holds `weights.safetensors` (fp32 master weights), `ema.safetensors`,
`optimizer.safetensors` (`<parameter>/<state>`) and `state.json` (images seen, running means, checksums of the other
files). It is written under another name, synced and renamed. Stacked experts are stored whole, their first axis being
the global expert id, so a checkpoint does not know the layout it was written from. Loading never executes code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.errors import CheckpointError, StorageError
from experiments.records.layout import RunDir
from experiments.training.engine import Engine

FORMAT_VERSION = 1
TENSOR_FILES = ("weights", "ema", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """What was read: the loop's own state, and full fp32 tensors by name."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save_checkpoint(engine: Engine, run_dir: RunDir, config_id: str, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint at `state["images_seen"]` and drop all but the `keep` newest. Collective."""
    tensors = {
        "weights": engine.partitions.gather(),
        "ema": engine.ema.gather(),
        "optimizer": _gather_optimizer(engine),
    }
    final = run_dir.checkpoints / f"images_{state['images_seen']:012d}"
    if engine.rank == 0:
        try:
            _write(run_dir.checkpoints, final, tensors, {"config_id": config_id, **state})
            for old in _complete(run_dir)[:-keep]:
                shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"The checkpoint {final} could not be written: {error}.",
                "The one before it is intact. Free space and run the same command again.",
            ) from error
    return final


def load_newest(
    run_dir: RunDir, config_id: str, say: Callable[[str], None], files: Sequence[str] = TENSOR_FILES
) -> Checkpoint | None:
    """The newest checkpoint of which `files` are whole; None when the run has none.

    A damaged one is passed over and said; a `CheckpointError` when all are damaged or one belongs to another config.
    """
    complete = _complete(run_dir)
    for path in reversed(complete):
        try:
            checkpoint = read_checkpoint(path, files)
        except CheckpointError as error:
            say(f"{error.message} Trying the checkpoint before it.")
            continue
        if checkpoint.state["config_id"] != config_id:
            raise CheckpointError(
                f"{path} belongs to config {checkpoint.state['config_id']}, not {config_id}.",
                "Use another --run-dir.",
            )
        return checkpoint
    if complete:
        raise CheckpointError(
            f"Every checkpoint in {run_dir.checkpoints} is damaged.", "Delete the folder to start the run anew."
        )
    return None


def read_checkpoint(path: Path, files: Sequence[str] = TENSOR_FILES) -> Checkpoint:
    """Read and verify `files` of one checkpoint; a `CheckpointError` naming what is wrong with it."""
    try:
        state = json.loads((path / "state.json").read_text())
        if state["format_version"] != FORMAT_VERSION:
            raise CheckpointError(f"{path} has format {state['format_version']}, this ecdit reads {FORMAT_VERSION}.")
        paths = {name: path / f"{name}.safetensors" for name in files}
        for file in paths.values():
            if _sha256(file) != state["sha256"][file.name]:
                raise CheckpointError(f"{file} is damaged: its checksum does not match.")
        tensors = {name: load_file(file) for name, file in paths.items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}.") from error
    return Checkpoint(path, state, tensors)


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


def _gather_optimizer(engine: Engine) -> dict[str, Tensor]:
    """Tensors of the weights' layout as `<parameter>/<state>`, and counters once as `/<state>`."""
    states = [engine.optimizer.state[flat] for flat in engine.partitions.flats]
    gathered: dict[str, Tensor] = {}
    for key, first in states[0].items():
        if first.dim() == 0:
            gathered[f"/{key}"] = first.detach().cpu().clone()
            continue
        full = engine.partitions.gather([state[key] for state in states])
        gathered |= {f"{name}/{key}": tensor for name, tensor in full.items()}
    return gathered


def _scatter_optimizer(engine: Engine, saved: dict[str, Tensor]) -> None:
    for key in {name.rpartition("/")[2] for name in saved}:
        counter = saved.get(f"/{key}")
        flats = [torch.zeros_like(flat) for flat in engine.partitions.flats]
        if counter is None:
            engine.partitions.scatter({n: saved[f"{n}/{key}"] for n in engine.partitions.parameters}, flats)
        for flat, value in zip(engine.partitions.flats, flats, strict=True):
            engine.optimizer.state[flat][key] = value if counter is None else counter.clone()


def _write(folder: Path, final: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover)
    temporary = folder / f".writing-{final.name}"
    temporary.mkdir()
    for name, group in tensors.items():
        save_file({key: value.contiguous().cpu() for key, value in group.items()}, temporary / f"{name}.safetensors")
    sums = {f"{name}.safetensors": _sha256(temporary / f"{name}.safetensors") for name in tensors}
    (temporary / "state.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "sha256": sums, **state}))
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    if final.exists():  # the same images again: after a damaged checkpoint was passed over
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)


def _complete(run_dir: RunDir) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(run_dir.checkpoints.glob("images_*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
