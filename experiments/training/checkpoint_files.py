"""Writes checkpoints: every process writes its own shard, and the checkpoint gets its name once all shards are there.

`checkpoints/images_000012800/` holds `weights.safetensors` (fp32 master weights), `ema.safetensors` and
`optimizer.safetensors` (keys `<parameter>/<state>`). With `train.ema=power`, `ema.safetensors` holds further averages
under `<parameter>/<width>`, and stays with its `state.json` when a checkpoint makes room for newer ones, in a folder
`averages_000012800/`. With n processes there are n of each file, with names like `weights-<i>-of-<n>.safetensors`.
`state.json` has images seen, running means, the shape of every parameter, the stretch of it in each shard, and
checksums of all files and of its own content. A process writes only what it holds and sends nothing. Everything is
written to a temporary folder, synced and renamed, so that a checkpoint is complete or invisible. A stretch that is the
whole parameter has its shape, a part is flat; stacked experts are one parameter whose first axis is the global expert
number. A checkpoint is thus independent of the layout that wrote it. `checkpoint.py` reads it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from experiments.errors import StorageError
from experiments.inputs import sha256_of_files
from experiments.records.run_folder import RunDir
from experiments.records.storage import FULL, deleted_error, set_aside, sync
from experiments.training.checkpoint_list import (
    averages_folder,
    complete_checkpoints,
    images_of_another,
    stored_averages,
)

FORMAT_VERSION = 3
TENSOR_FILES = ("weights", "ema", "optimizer")
OUR_FILES = re.compile(rf"state\.json|({'|'.join(TENSOR_FILES)})(-[0-9]{{5}}-of-[0-9]{{5}})?\.safetensors")
NOT_AVERAGES = re.compile(r"(weights|optimizer)(-[0-9]{5}-of-[0-9]{5})?\.safetensors")
Stretches = dict[str, tuple[int, int]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TrainingState:
    """The state that one process saves, in host memory: tensors by file and key, and its stretch of every parameter."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    stretches: Stretches
    counters: Mapping[str, float]
    """Scalar optimizer state, such as `step`, which is equal on every process."""
    ema_widths: tuple[float, ...] = ()
    """The widths of the averages of `train.ema=power`."""
    router_state: Mapping[str, Any] = field(default_factory=dict)
    """The numbers of router states (`router_states.py`), which are equal on every process."""


@dataclass(frozen=True)
class ShardReport:
    """Describes a shard that was written: its stretches, and checksums by file name."""

    stretches: Stretches
    sha256: dict[str, str]


def shard_name(file: str, rank: int, world: int) -> str:
    """Returns a shard's file name, numbered from 1 as on Hugging Face; a single shard has no number."""
    if world == 1:
        return f"{file}.safetensors"
    return f"{file}-{rank + 1:05d}-of-{world:05d}.safetensors"


def write_shard(run_dir: RunDir, images_seen: int, snapshot: TrainingState, rank: int, world: int) -> ShardReport:
    """Writes and syncs the files of one process. Raises `StorageError`."""
    folder = temporary_folder(run_dir, images_seen)
    try:
        run_dir.checkpoints.mkdir(exist_ok=True)  # no parents: a run folder that somebody has deleted stays deleted
        folder.mkdir(exist_ok=True)
        sums = {}
        for file, tensors in snapshot.tensors.items():
            path = folder / shard_name(file, rank, world)
            save_tensors({key: value.contiguous() for key, value in tensors.items()}, path)
            sync(path)
            sums[path.name] = sha256_of_files(path)
    except OSError as error:
        raise _not_written(run_dir, images_seen, error) from error
    return ShardReport(snapshot.stretches, sums)


def publish(
    run_dir: RunDir, state: Mapping[str, Any], shapes: Shapes, reports: Sequence[ShardReport], keep: int,
    trunk_images: int | None = None,
) -> Path:  # fmt: skip
    """Gives the checkpoint that all processes have written its name, and keeps only it and the `keep - 1` before it.

    The one after `trunk_images` stays, too, because longer runs continue from it (`config/cooldown.py`), and with
    `train.ema=power` the averages of older ones stay, in folders of their own. Checkpoints of more images are removed:
    they were damaged, so training went on from an earlier one and will reach them again. A folder that holds anything
    but the files of a checkpoint is never removed. Older checkpoints are removed only after the new one is complete.
    Raises `StorageError`, after it has removed the checkpoint if that is still unfinished.
    """
    images_seen = int(state["images_seen"])
    final, folder = run_dir.checkpoint(images_seen), temporary_folder(run_dir, images_seen)
    content = {
        "format_version": FORMAT_VERSION,
        "sha256": {name: digest for report in reports for name, digest in report.sha256.items()},
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "stretches": [report.stretches for report in reports],
        "state": dict(state),
    }
    try:
        write_description(folder, content)
        if os.path.lexists(final):  # it was damaged and skipped when training continued
            _drop(final)
        if os.path.lexists(final):  # it holds files of somebody else, or is a copy of another checkpoint
            set_aside(final)
        folder.rename(final)
        sync(run_dir.checkpoints)
        _drop_all_but(run_dir, final, keep, trunk_images, keeps_averages="ema_widths" in state)
    except OSError as error:
        abandon(run_dir, images_seen)
        raise _not_written(run_dir, images_seen, error) from error
    return final


def write_description(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes `state.json`, which says what the tensor files in `folder` hold, and makes the folder durable."""
    own = {name: value for name, value in content.items() if name != "sha256_of_this"}
    text = json.dumps({**own, "sha256_of_this": sha256_of_content(own)})
    (folder / "state.json").write_text(text, encoding="utf-8")
    sync(folder / "state.json")
    sync(folder)


def write_checkpoint(
    run_dir: RunDir, config_id: str, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], keep: int
) -> Path:
    """Writes a complete checkpoint at `state["images_seen"]` in one call, from full tensors by file and name."""
    run_dir.path.mkdir(parents=True, exist_ok=True)
    drop_leftovers(run_dir)
    images_seen, weights = int(state["images_seen"]), tensors["weights"]
    stretches = {name: (0, tensor.numel()) for name, tensor in weights.items()}
    try:
        report = write_shard(run_dir, images_seen, TrainingState(tensors, stretches, {}), rank=0, world=1)
    except StorageError:
        abandon(run_dir, images_seen)
        raise
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return publish(run_dir, {"config_id": config_id, **state}, shapes, [report], keep)


def drop_leftovers(run_dir: RunDir) -> None:
    """Removes unfinished checkpoints of processes that died.

    Only the process that publishes may call this, before any process writes.
    """
    for leftover in run_dir.checkpoints.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def abandon(run_dir: RunDir, images_seen: int) -> None:
    """Removes the unfinished checkpoint at `images_seen`."""
    shutil.rmtree(temporary_folder(run_dir, images_seen), ignore_errors=True)


def sha256_of_content(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the canonical JSON of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def temporary_folder(run_dir: RunDir, images_seen: int) -> Path:
    """Returns the folder in which the checkpoint is written before it gets its name."""
    final = run_dir.checkpoint(images_seen)
    return final.with_name(f".writing-{final.name}")


def _drop_all_but(run_dir: RunDir, newest: Path, keep: int, trunk_images: int | None, keeps_averages: bool) -> None:
    complete = complete_checkpoints(run_dir)
    place = complete.index(newest) + 1
    trunk = None if trunk_images is None else run_dir.checkpoint(trunk_images)
    for older in complete[: max(0, place - keep)]:
        if older == trunk:
            continue
        if keeps_averages:
            _keep_averages(older)
        else:
            _drop(older)
    for more_images in complete[place:]:
        _drop(more_images)
    if keeps_averages:  # of all, because a process may have died between the renaming and the removal
        for averages in stored_averages(run_dir):
            _remove_ours(averages, NOT_AVERAGES)


def _keep_averages(checkpoint: Path) -> None:
    """Renames a checkpoint that we wrote to the folder of its averages; `_drop_all_but` then removes all else in it.

    Its `state.json` still describes the averages, so that they are read as those of a checkpoint are.
    """
    if not _is_ours(checkpoint):
        return
    averages = averages_folder(checkpoint)
    if os.path.lexists(averages):  # training has passed this checkpoint before, and continued from an earlier one
        _drop(averages)
    if os.path.lexists(averages):
        set_aside(averages)
    checkpoint.rename(averages)
    sync(checkpoint.parent)


def _drop(checkpoint: Path) -> None:
    """Removes a checkpoint that we wrote; a link, a copy, or a folder that holds any other file, stays."""
    if _is_ours(checkpoint):
        _remove_ours(checkpoint, OUR_FILES)
        checkpoint.rmdir()


def _is_ours(checkpoint: Path) -> bool:
    """Returns whether this is a checkpoint that we wrote: no link, no copy, and no folder that holds any other file."""
    if checkpoint.is_symlink() or not checkpoint.is_dir() or images_of_another(checkpoint) is not None:
        return False
    return all(OUR_FILES.fullmatch(name) for name in os.listdir(checkpoint))


def _remove_ours(checkpoint: Path, names: re.Pattern[str]) -> None:
    """Removes the files with such names from a checkpoint that we wrote."""
    if _is_ours(checkpoint):
        for name in filter(names.fullmatch, os.listdir(checkpoint)):
            (checkpoint / name).unlink()


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file.

    Raises `OSError` also where the library raises its own error, which has the error number only in its text.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        code = re.search(r"\b(?:os error|code:) ([0-9]+)", str(error))
        number = int(code.group(1)) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _not_written(run_dir: RunDir, images_seen: int, error: OSError) -> StorageError:
    if not run_dir.path.exists():
        return deleted_error(run_dir.path)
    way_out = "Free space" if error.errno in FULL else "Make the folder writable"
    goes_on = ": it continues from the checkpoint before it" if complete_checkpoints(run_dir) else ""
    return StorageError(
        f"cannot write the checkpoint {run_dir.checkpoint(images_seen)}: {(error.strerror or str(error)).lower()}.",
        f"{way_out} and run the same command again{goes_on}.",
    )
