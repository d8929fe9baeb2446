"""Begins a run on the trunk of a shorter one: it continues from the checkpoint at which that one's cooldown begins.

Up to there the two runs compute the same (`config/cooldown.py`), so that the longer one takes over checkpoint and rows
as its own and then continues as any interrupted run does. The checkpoint gets its name last. A run that is killed
before that takes everything over again.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.config.cooldown import WSD, cooldown_start
from experiments.config.identity import config_id
from experiments.config.schema import RunConfig
from experiments.config.stored import stored_config
from experiments.errors import CheckpointError, ConfigError, RecordError
from experiments.records.record_types import ParentRecord, RunRecord
from experiments.records.run_folder import RunDir
from experiments.records.run_lock import first_difference, lock_folder, settle_record
from experiments.records.same_plugins import require_same_plugins
from experiments.records.storage import storage_errors, sync
from experiments.records.trunk import copy_records, has_begun
from experiments.training.checkpoint import DamagedCheckpointError, read_description
from experiments.training.checkpoint_files import (
    TENSOR_FILES,
    ShardReport,
    drop_leftovers,
    publish,
    shard_name,
    temporary_folder,
    write_description,
)
from experiments.training.checkpoint_list import (
    averages_folder,
    complete_checkpoints,
    images_in_name,
    stored_averages,
)

ALONE = "or leave --branch-from out: the run alone gives the same numbers."


def begin(config: RunConfig, run_dir: RunDir, record: RunRecord, parent: RunDir | None) -> None:
    """Writes `run.json` at the first start; with `parent`, the run also takes over that run's trunk.

    Only the process that writes records calls this. A run that has begun already continues from its own checkpoint, and
    `parent` is not read. Raises `RecordError` where the folder, or `parent`, is of a run of other settings, and
    `CheckpointError` where `parent` has no checkpoint at the beginning of its cooldown.
    """
    if parent is None or has_begun(run_dir):
        settle_record(run_dir, record)
        return
    trunk, images_seen = _trunk_of(config, record, parent)
    content = read_description(parent.checkpoint(images_seen), trunk.config_id)
    before = None if trunk.parent is None else next(trunk.parent.ancestors, None)
    origin = ParentRecord(name=trunk.name, config_id=trunk.config_id, images=images_seen, parent=before)
    # A run keeps the precision that its first images were trained in.
    began = record.model_copy(update={"parent": origin, "precision": trunk.precision})
    settled, held = lock_folder(run_dir, began, images_seen=0)
    try:
        if settled.parent == origin and not has_begun(run_dir):  # no other process was faster
            drop_leftovers(run_dir)
            if "ema_widths" in content["state"]:
                _take_averages(parent, run_dir, images_seen, trunk.config_id, settled.config_id)
            _link_tensors(parent.checkpoint(images_seen), content, temporary_folder(run_dir, images_seen))
            copy_records(parent, run_dir, images_seen)
            _publish(run_dir, content, settled.config_id, config.checkpoint.keep)
    finally:
        held.release()


def _trunk_of(config: RunConfig, record: RunRecord, parent: RunDir) -> tuple[RunRecord, int]:
    """Returns the record of `parent` and the images of the checkpoint that this run can continue from."""
    own_start = cooldown_start(config)
    if own_start is None:
        raise ConfigError(
            f"--branch-from does not fit optim.schedule={config.optim.schedule}: only runs of optim.schedule={WSD} "
            "have a trunk that does not depend on their length.",
            f"Use optim.schedule={WSD}, {ALONE}",
        )
    if config.optim.rate_by_length is not None:
        raise ConfigError(
            "--branch-from does not fit optim.rate_by_length, with which the learning rate of the trunk follows the "
            "length of the run.",
            f"Leave optim.rate_by_length out, {ALONE}",
        )
    trunk = parent.read_run()
    theirs = stored_config(trunk.config, parent.run_json)
    images = {"train": theirs.train.model_copy(update={"images": config.train.images})}
    as_long = theirs.model_copy(update=images)
    same_rows = (as_long.log, as_long.eval) == (config.log, config.eval)
    if config_id(as_long) != record.config_id or not same_rows:
        mine = trunk.model_copy(update={"config": as_long.model_dump(mode="json"), "config_id": config_id(as_long)})
        raise RecordError(
            f"--branch-from {parent.path} is not this run at another length: {first_difference(mine, record)}.",
            f"Name a run that differs in train.images alone, {ALONE}",
        )
    require_same_plugins(trunk, record.plugins, parent.run_json)
    start = cooldown_start(theirs) or 0
    if not start or start > own_start:
        raise RecordError(
            f"--branch-from {parent.path} has no trunk for this run: its cooldown begins after {start:,} images, and "
            f"that of this run after {own_start:,}.",
            f"Name a shorter run, {ALONE}",
        )
    if not parent.checkpoint(start).is_dir():
        raise CheckpointError(
            f"--branch-from {parent.path} holds no checkpoint after {start:,} images, where its cooldown begins.",
            f"Train it that far, or bring the checkpoint back, {ALONE}",
        )
    return trunk, start


def _take_averages(parent: RunDir, run_dir: RunDir, images_seen: int, trunk_id: str, identity: str) -> None:
    """Takes over the averages of the parent's checkpoints before `images_seen`, which `train.ema=power` keeps.

    The run alone would have them too, and a width can only be reconstructed from the averages of several checkpoints.
    """
    for found in (*complete_checkpoints(parent), *stored_averages(parent)):
        images = images_in_name(found)
        target = averages_folder(run_dir.checkpoint(images))
        if images >= images_seen or target.exists():
            continue
        # The parent may still train, and a checkpoint of it may have made room since it was listed.
        source = found if found.is_dir() else averages_folder(found)
        content = read_description(source, trunk_id)
        folder = temporary_folder(run_dir, images)
        _link_tensors(source, content, folder, files=("ema",))
        with storage_errors(folder):
            write_description(folder, {**content, "state": {**content["state"], "config_id": identity}})
            folder.rename(target)
            sync(target.parent)


def _link_tensors(checkpoint: Path, content: dict[str, Any], folder: Path, files: Sequence[str] = TENSOR_FILES) -> None:
    """Puts the tensor files of `checkpoint` into the unfinished checkpoint `folder`, without a copy where possible.

    No file of a checkpoint is ever changed, so that both runs can have the same one; either may remove its name.
    """
    num_shards = len(content["stretches"])
    with storage_errors(folder):
        folder.mkdir(parents=True)
        for file, shard in itertools.product(files, range(num_shards)):
            name = shard_name(file, shard, num_shards)
            if not (checkpoint / name).is_file():
                raise DamagedCheckpointError(f"{checkpoint / name} is missing.", "Bring it back.")
            try:
                os.link(checkpoint / name, folder / name)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(checkpoint / name, folder / name)
                sync(folder / name)


def _publish(run_dir: RunDir, content: dict[str, Any], identity: str, keep: int) -> None:
    reports = [ShardReport(stretches, {}) for stretches in content["stretches"]]
    reports[0].sha256.update(content["sha256"])
    publish(run_dir, {**content["state"], "config_id": identity}, content["shapes"], reports, keep)
