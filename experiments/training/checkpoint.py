"""Checkpoints that are complete or invisible, keyed by parameter name.

`checkpoints/images_000012800/` holds `weights.safetensors` (fp32 master weights), `ema.safetensors`,
`optimizer.safetensors` (`<parameter>/<state>`) and `state.json` (images seen, running means, checksums of all files,
its own content included). It is written under another name, synced and renamed. Stacked experts are stored whole,
their first axis being the global expert id, so a checkpoint does not know the layout it was written from. Loading never
executes code. What is inside comes from `engine.py` and goes back to it in `restore.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.errors import CheckpointError, StorageError
from experiments.records.layout import RunDir
from experiments.records.storage import FULL

FORMAT_VERSION = 1
TENSOR_FILES = ("weights", "ema", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """What was read: the loop's own state, and full fp32 tensors by file and name."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def write_checkpoint(
    run_dir: RunDir, config_id: str, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], keep: int
) -> Path:
    """Write one at `state["images_seen"]`, then drop all but it and the `keep - 1` before it.

    Those of more images belong to a future that training is writing anew: it went on from an earlier one because they
    are damaged. Raises `StorageError`; what was there before is then untouched, and what was begun is removed.
    """
    final = run_dir.checkpoints / f"images_{state['images_seen']:012d}"
    temporary = run_dir.checkpoints / f".writing-{final.name}"
    try:
        _write(temporary, tensors, {"config_id": config_id, **state})
        if final.exists():  # damaged, and passed over when training went on
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(run_dir.checkpoints)
        _drop_all_but(run_dir, final, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _not_written(final, error) from error
    return final


def load_newest(
    run_dir: RunDir, config_id: str, say: Callable[[str], None], files: Sequence[str] = TENSOR_FILES
) -> Checkpoint | None:
    """The newest checkpoint of which `files` are whole; None when the run has none.

    A damaged one is passed over and said; a `CheckpointError` when all are damaged, or one belongs to another config or
    version.
    """
    complete = complete_checkpoints(run_dir)
    for path in reversed(complete):
        try:
            state = _read_state(path)
            _require_same_run(path, state, config_id)
            return Checkpoint(path, state["state"], {name: _read_tensors(path, name, state) for name in files})
        except _DamagedError as error:
            say(f"{error}. Trying the checkpoint before it.")
    if complete:
        raise CheckpointError(
            f"Every checkpoint in {run_dir.checkpoints} is damaged.", "Delete that folder to start the run anew."
        )
    return None


def complete_checkpoints(run_dir: RunDir) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(run_dir.checkpoints.glob("images_*"))


class _DamagedError(Exception):
    """One checkpoint cannot be used; another one may."""


def _require_same_run(path: Path, state: Mapping[str, Any], config_id: str) -> None:
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {state['format_version']}, this ecdit reads {FORMAT_VERSION}.",
            "Use the version of ecdit that wrote it.",
        )
    found = state["state"]["config_id"]
    if found != config_id:
        raise CheckpointError(f"{path} belongs to config {found}, not {config_id}.", "Use another --run-dir.")


def _read_state(path: Path) -> dict[str, Any]:
    file = path / "state.json"
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        whole = content.pop("sha256_of_this") == _sha256_of(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{file} is damaged ({error!r})") from error
    if not whole:
        raise _DamagedError(f"{file} is damaged (its checksum does not match)")
    return content


def _read_tensors(path: Path, name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    file = path / f"{name}.safetensors"
    try:
        whole = _sha256(file) == state["sha256"][name]
        tensors = load_file(file) if whole else {}
    except (OSError, SafetensorError) as error:
        raise _DamagedError(f"{file} is damaged ({error})") from error
    if not whole:
        raise _DamagedError(f"{file} is damaged (its checksum does not match)")
    return tensors


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".writing-*"):
        shutil.rmtree(leftover)
    folder.mkdir()
    for name, group in tensors.items():
        save_file({key: value.contiguous() for key, value in group.items()}, folder / f"{name}.safetensors")
    sums = {name: _sha256(folder / f"{name}.safetensors") for name in tensors}
    content = {"format_version": FORMAT_VERSION, "sha256": sums, "state": dict(state)}
    (folder / "state.json").write_text(json.dumps({**content, "sha256_of_this": _sha256_of(content)}), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _drop_all_but(run_dir: RunDir, newest: Path, keep: int) -> None:
    complete = complete_checkpoints(run_dir)
    place = complete.index(newest) + 1
    for other in (*complete[: max(0, place - keep)], *complete[place:]):
        shutil.rmtree(other)


def _not_written(path: Path, error: OSError | SafetensorError) -> StorageError:
    full = isinstance(error, SafetensorError) or error.errno in FULL
    way_out = "Free space" if full else "Make the folder writable"
    reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
    return StorageError(
        f"cannot write the checkpoint {path}: {reason}.",
        f"{way_out} and run the same command again: it continues from the checkpoint before it.",
    )


def _sha256_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
