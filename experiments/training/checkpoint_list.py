"""Which checkpoints a run has: none ever, some, or some that are there and cannot be reached.

A run that never saved starts at its first image. A run that saved and whose checkpoints cannot be listed (a disk that
is not mounted, a folder without permission, a folder that was removed) must not: its rows would be cut and its training
spent again. So the two are told apart here, before anything is written. Whether a checkpoint is whole is
`checkpoint.py`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from experiments.errors import CheckpointError, RecordError
from experiments.records.layout import RunDir

CHECKPOINT_NAME = re.compile(r"images_[0-9]{12}")
"""The names that training writes. A copy with another name (`images_000000000256_keep`) is its owner's."""

START_ANEW = "start anew with `ecdit train ... --restart`, which sets the old records aside."


def complete_checkpoints(run_dir: RunDir) -> list[Path]:
    """The complete checkpoints, oldest first. Raises `CheckpointError` where the folder is there and cannot be read."""
    try:
        names = os.listdir(run_dir.checkpoints)
    except OSError as error:
        if is_missing(run_dir.checkpoints, error):
            return []
        raise unreachable(run_dir.checkpoints, error) from error
    return sorted(run_dir.checkpoints / name for name in names if CHECKPOINT_NAME.fullmatch(name))


def saved_checkpoints(run_dir: RunDir, say: Callable[[str], None]) -> list[Path]:
    """The complete checkpoints, oldest first; empty only where the run never had one.

    `say` hears where the newest that the run has saved is not among them. Raises `CheckpointError` where they cannot be
    read, or none is left of a run whose records say that it saved.
    """
    found = complete_checkpoints(run_dir)
    saved = 0 if found else _images_saved(run_dir)
    if saved:
        raise CheckpointError(
            f"{run_dir.checkpoints} holds no checkpoint, but the run has saved after {saved:,} images.",
            f"Bring it back, or {START_ANEW}",
        )
    newest = _newest_by_status(run_dir) if found else 0
    if found and newest > int(found[-1].name.removeprefix("images_")):
        say(f"{run_dir.checkpoints} has lost the checkpoint after {newest:,} images; its newest is {found[-1].name}.")
    return found


def _newest_by_status(run_dir: RunDir) -> int:
    """Images seen at the newest checkpoint of which the status tells; 0 where it tells of none or cannot be read."""
    try:
        status = run_dir.read_status()
    except RecordError:
        return 0
    return 0 if status is None else status.checkpoint_images or 0


def is_missing(path: Path, error: OSError) -> bool:
    """Whether `error` says that `path` does not exist. Behind a link that leads nowhere it may: on another disk."""
    return isinstance(error, FileNotFoundError) and _broken_link(path) is None


def unreachable(path: Path, error: OSError) -> CheckpointError:
    """What to raise for a path that exists and cannot be read."""
    link = _broken_link(path)
    if link is None:
        reason = (error.strerror or str(error)).lower()
    else:
        reason = f"{link} is a link to {os.readlink(link)}, which does not exist"
    return CheckpointError(
        f"{path} cannot be read: {reason}.",
        "Nothing was changed. Mount the disk or make it readable, and run the same command again.",
    )


def _broken_link(path: Path) -> Path | None:
    """`path`, or the folder that it is in, where that is a link that leads nowhere."""
    return next((each for each in (path, path.parent) if each.is_symlink() and not each.exists()), None)


def _images_saved(run_dir: RunDir) -> int:
    """Images seen at a checkpoint that the run must have had, 0 where it need not have had any.

    The status says it. Where the status does not (of an earlier version, or lost), the rows do: a run that went beyond
    its second cadence has waited for the checkpoint of the first.
    """
    status = run_dir.read_status()
    if status is not None and status.checkpoint_images is not None:
        return status.checkpoint_images
    step = (run_dir.last_step() or {}).get("images_seen")
    reached = max(status.images_seen if status is not None else 0, step if isinstance(step, int) else 0)
    if not reached or not run_dir.run_json.exists():
        return 0
    if status is not None and status.state == "done":
        return reached
    config = run_dir.read_run().config
    every, batch = config["checkpoint"]["every_images"], config["train"]["batch_images"]
    first, second = (-(-cadences * every // batch) * batch for cadences in (1, 2))
    return first if reached > second else 0
