"""Lists the checkpoints of a run, and tells a run that never saved from one whose checkpoints cannot be reached.

A run that never saved starts at its first image. A run that saved, but whose checkpoints cannot be listed (a disk that
is not mounted, a folder without permission, a folder that was removed), must not start again: its rows would be cut and
its training repeated. This module decides which it is before anything is written. `checkpoint.py` checks whether a
checkpoint is intact.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from experiments.errors import CheckpointError, RecordError
from experiments.inputs import read_end
from experiments.records.run_folder import RunDir

CHECKPOINT_NAME = re.compile(r"images_[0-9]{12}")
"""The names that training writes. A copy with another name (`images_000000000256_keep`) is a user's own, and so is one
with such a name whose content is of another number of images."""
AVERAGES_NAME = re.compile(r"averages_[0-9]{12}")
"""The names of the folders in which averages of earlier checkpoints stay (`train.ema=power`)."""

STATE = b'"state": '
STATE_BYTES = 1 << 16
"""The end of `state.json` that holds the state of the loop. What is before it grows with the model, up to gigabytes."""

START_ANEW = "start anew with `ecdit train ... --restart`, which sets the old records aside."


def complete_checkpoints(run_dir: RunDir) -> list[Path]:
    """Returns the complete checkpoints, oldest first. Raises `CheckpointError` where their folder cannot be read."""
    return [path for path in _named_checkpoints(run_dir) if images_of_another(path) is None]


def images_of_another(path: Path) -> int | None:
    """Returns the images seen by the content of a checkpoint where its name has another number, else None.

    Where the content does not tell, which is damage, the name counts.
    """
    try:
        end = read_end(path / "state.json", STATE_BYTES)
        state, _ = json.JSONDecoder().raw_decode(end[end.rindex(STATE) + len(STATE) :].decode())
    except (OSError, ValueError, RecursionError):
        return None
    images = state.get("images_seen") if isinstance(state, dict) else None
    return images if isinstance(images, int) and images != images_in_name(path) else None


def images_in_name(path: Path) -> int:
    """Returns the images seen by a checkpoint, or by the averages of one, from the name of its folder."""
    return int(path.name.rpartition("_")[2])


def averages_folder(checkpoint: Path) -> Path:
    """Returns the folder in which the averages of a checkpoint stay when the checkpoint itself makes room."""
    return checkpoint.with_name(f"averages_{checkpoint.name.rpartition('_')[2]}")


def stored_averages(run_dir: RunDir) -> list[Path]:
    """Returns the folders of averages whose checkpoints have made room, oldest first.

    Raises `CheckpointError` where their folder cannot be read.
    """
    return [path for path in _named(run_dir, AVERAGES_NAME) if images_of_another(path) is None]


def _named_checkpoints(run_dir: RunDir) -> list[Path]:
    return _named(run_dir, CHECKPOINT_NAME)


def _named(run_dir: RunDir, pattern: re.Pattern[str]) -> list[Path]:
    try:
        names = os.listdir(run_dir.checkpoints)
    except OSError as error:
        if is_missing(run_dir.checkpoints, error):
            return []
        raise unreachable(run_dir.checkpoints, error) from error
    return sorted(run_dir.checkpoints / name for name in names if pattern.fullmatch(name))


def saved_checkpoints(run_dir: RunDir, say: Callable[[str], None]) -> list[Path]:
    """Returns the complete checkpoints, oldest first; the list is empty only where the run never had one.

    `say` is told where the newest checkpoint that the run has saved is not among them. Raises `CheckpointError` where
    they cannot be read, or where none is left although the records say that it saved. It is also told of a copy under
    the name of another checkpoint, which is neither read nor removed.
    """
    found = complete_checkpoints(run_dir)
    for path in _named_checkpoints(run_dir):
        if (images := images_of_another(path)) is not None:
            say(f"{path} holds the checkpoint after {images:,} images: it is taken for a copy, and left alone.")
    because = None if found else _sign_of_a_checkpoint(run_dir)
    if because is not None:
        raise CheckpointError(
            f"{run_dir.checkpoints} holds no checkpoint, but {because}.", f"Bring it back, or {START_ANEW}"
        )
    newest = _newest_by_status(run_dir) if found else 0
    if found and newest > images_in_name(found[-1]):
        say(f"{run_dir.checkpoints} has lost the checkpoint after {newest:,} images; its newest is {found[-1].name}.")
    return found


def _newest_by_status(run_dir: RunDir) -> int:
    """Returns the images seen at the newest checkpoint that the status names, or 0 where there is none to read."""
    try:
        status = run_dir.read_status()
    except RecordError:
        return 0
    return 0 if status is None else status.checkpoint_images or 0


def is_missing(path: Path, error: OSError) -> bool:
    """Returns whether `error` means that `path` does not exist.

    A broken link does not count as missing, because its target may be on a disk that is not mounted.
    """
    return isinstance(error, FileNotFoundError) and _broken_link(path) is None


def unreachable(path: Path, error: OSError) -> CheckpointError:
    """Returns the error for a path that exists but cannot be read."""
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
    """Returns `path` or its folder, whichever is a broken link, or None."""
    return next((each for each in (path, path.parent) if each.is_symlink() and not each.exists()), None)


def _sign_of_a_checkpoint(run_dir: RunDir) -> str | None:
    """Returns what in the records says that there was a checkpoint, or None.

    Where neither the status nor a step says how far the run was, values that were measured are taken for a sign:
    starting anew would drop them.
    """
    saved = _images_saved(run_dir)
    if saved:
        return f"the run has saved after {saved:,} images"
    status = run_dir.read_status()
    if run_dir.last_step() is not None or (status is not None and status.checkpoint_images is not None):
        return None
    rows = run_dir.read_rows(run_dir.evals).rows
    measured = max((row["images_seen"] for row in rows if isinstance(row.get("images_seen"), int)), default=0)
    return f"{run_dir.evals.name} has values after {measured:,} images" if measured > 0 else None


def _images_saved(run_dir: RunDir) -> int:
    """Returns the images seen at a checkpoint that the run must have had, or 0 where it need not have had any.

    The status records this. Where it does not (an earlier version wrote it, or it was lost), the rows show it: a run
    that went beyond its second time of saving has waited for the first checkpoint to be complete.
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
