"""Reading checkpoints, from whatever layout they were written: stretches of parameters by name.

What a checkpoint holds and how it is written is in `checkpoint_files.py`; how training goes on from it in `restore.py`.
A process reads, and checks, only the shards that hold what it asks for. Loading never executes code: state is JSON,
tensors are safetensors.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from experiments.errors import CheckpointError
from experiments.inputs import MAX_ROWS_BYTES, read_input
from experiments.records.layout import RunDir
from experiments.text import printable, shortened
from experiments.training.checkpoint_contents import require_stretches, require_well_formed
from experiments.training.checkpoint_files import (
    FORMAT_VERSION,
    TENSOR_FILES,
    Stretches,
    sha256_of_content,
    sha256_of_file,
    shard_name,
)
from experiments.training.checkpoint_list import START_ANEW, is_missing, saved_checkpoints, unreachable

NO_FILE = frozenset({errno.ENOTDIR, errno.EISDIR, errno.EINVAL})
"""What opening something says that is not a regular file."""


class DamagedCheckpointError(CheckpointError):
    """One checkpoint cannot be used; another one may."""


Agree = Callable[[CheckpointError | None], CheckpointError | None]
"""The first trouble that any process of the run has. Collective."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the loop's own state, and tensors on demand."""

    path: Path
    state: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    stretches: list[Stretches]
    """Of each shard, [start, stop) of the flattened parameters that it has."""
    opened: dict[Path, Any] = field(default_factory=dict, compare=False, repr=False)

    def read(self, file: str, name: str, start: int, stop: int, state: str = "") -> Tensor:
        """The numbers [start, stop) of the flattened parameter `name`, fp32, of `weights`, `ema` or `optimizer`.

        `state`: of the optimizer (`exp_avg`). Only these bytes are read.
        """
        key = f"{name}/{state}" if state else name
        parts = [self._part(file, shard, key, *bounds) for shard, bounds in self._overlaps(name, start, stop)]
        assert sum(part.numel() for part in parts) == stop - start, f"{name} [{start}, {stop}) is not in {self.path}"
        return parts[0] if len(parts) == 1 else torch.cat([*parts, torch.empty(0)])

    def full(self, file: str) -> dict[str, Tensor]:
        """Every parameter whole, by name."""
        return {name: self.read(file, name, 0, math.prod(shape)).view(shape) for name, shape in self.shapes.items()}

    def shards_of(self, wanted: Mapping[str, tuple[int, int]]) -> list[int]:
        """The shards that hold anything of `wanted`."""
        found = {shard for name, bounds in wanted.items() for shard, _ in self._overlaps(name, *bounds)}
        return sorted(found)

    def _overlaps(self, name: str, start: int, stop: int) -> list[tuple[int, tuple[int, int, int]]]:
        """(shard, (first and last number inside its stretch, size of the stretch)), in the order of the numbers."""
        found = []
        for shard, stretches in enumerate(self.stretches):
            first, last = stretches.get(name, (0, 0))
            low, high = max(start, first), min(stop, last)
            if low < high:
                found.append((low, (shard, (low - first, high - first, last - first))))
        return [overlap for _, overlap in sorted(found)]

    def _part(self, file: str, shard: int, key: str, low: int, high: int, size: int) -> Tensor:
        path = self.path / shard_name(file, shard, len(self.stretches))
        if path not in self.opened:
            self.opened[path] = safe_open(path, framework="pt")
        opened = self.opened[path]
        tensor: Tensor
        if (low, high) == (0, size):
            tensor = opened.get_tensor(key).reshape(-1)
        elif len(opened.get_slice(key).get_shape()) == 1:
            tensor = opened.get_slice(key)[low:high]
        else:  # a whole parameter, of which the rows that hold these numbers are read
            rows, row = opened.get_slice(key), math.prod(opened.get_slice(key).get_shape()[1:])
            some = rows[low // row : -(-high // row)].reshape(-1)
            tensor = some[low % row : low % row + high - low]
        return tensor


def load_newest(
    run_dir: RunDir,
    config_id: str,
    say: Callable[[str], None],
    files: Sequence[str] = TENSOR_FILES,
    wanted: Mapping[str, tuple[int, int]] | None = None,
    paths: Sequence[Path] | None = None,
    agree: Agree = lambda trouble: trouble,
) -> Checkpoint | None:
    """The newest checkpoint of which `files` are whole; None when the run has none.

    `wanted`: the stretches that this process will read, all by default; only the shards that hold them are checked.
    `paths`: the checkpoints to choose from, oldest first. `agree`: with several processes, all take the same.
    A damaged one is passed over and said. A `CheckpointError` when all are damaged, when one belongs to another config
    or version or cannot be read, and when the records say that there was one and there is none.
    """
    complete = saved_checkpoints(run_dir, say) if paths is None else paths
    for path in reversed(complete):
        trouble: CheckpointError | None = None
        found = None
        try:
            found = _open(path, config_id, files, wanted)
        except CheckpointError as error:
            trouble = error
        trouble = agree(trouble)
        if trouble is None:
            return found
        if not isinstance(trouble, DamagedCheckpointError):
            raise trouble
        say(f"{trouble} Trying the checkpoint before it.")
    if complete:
        raise CheckpointError(
            f"Every checkpoint in {run_dir.checkpoints} is damaged.", f"Bring one back, or {START_ANEW}"
        )
    return None


def _open(path: Path, config_id: str, files: Sequence[str], wanted: Mapping[str, tuple[int, int]] | None) -> Checkpoint:
    content = _read_state(path)
    _require_same_run(path, content, config_id)
    _require_true(path, require_well_formed, content)
    stretches = [{name: tuple(bounds) for name, bounds in shard.items()} for shard in content["stretches"]]
    shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
    checkpoint = Checkpoint(path, content["state"], shapes, stretches)
    shards = range(len(stretches)) if wanted is None else checkpoint.shards_of(wanted)
    for shard in shards:
        for file in files:
            name = shard_name(file, shard, len(stretches))
            _require_whole(path / name, content["sha256"].get(name, ""))
            if file != "optimizer":
                _require_true(path / name, require_stretches, path / name, stretches[shard], shapes)
    return checkpoint


def _require_same_run(path: Path, content: Mapping[str, Any], config_id: str) -> None:
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {content.get('format_version')}, this ecdit reads {FORMAT_VERSION}.",
            "Use the version of ecdit that wrote it.",
        )
    state = content.get("state")
    found = state.get("config_id") if isinstance(state, dict) else None
    if found != config_id:
        raise CheckpointError(f"{path} belongs to config {found}, not {config_id}.", "Use another --run-dir.")


def _read_state(path: Path) -> dict[str, Any]:
    file = path / "state.json"
    try:
        content: dict[str, Any] = json.loads(read_input(file, MAX_ROWS_BYTES))
        whole = content.pop("sha256_of_this") == sha256_of_content(content)
    except OSError as error:
        raise _not_read(file, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        short = shortened(printable(repr(error)), 200)  # some errors hold all of what could not be decoded
        raise DamagedCheckpointError(f"{file} is damaged ({short}).") from error
    if not whole:
        raise DamagedCheckpointError(f"{file} is damaged (its checksum does not match).")
    return content


def _require_true(file: Path, check: Callable[..., None], *arguments: Any) -> None:
    """Run a check of `checkpoint_contents.py`; what it does not accept is damage."""
    try:
        check(*arguments)
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{file} is damaged ({error})") from error


def _require_whole(file: Path, digest: str) -> None:
    try:
        whole = sha256_of_file(file) == digest
    except OSError as error:
        raise _not_read(file, error) from error
    if not whole:
        raise DamagedCheckpointError(f"{file} is damaged (its checksum does not match).")


def _not_read(file: Path, error: OSError) -> CheckpointError:
    """A file that is missing, or something else than a file, is damage; one that cannot be reached may come back."""
    if is_missing(file, error) or error.errno in NO_FILE:
        return DamagedCheckpointError(f"{file} is damaged ({(error.strerror or str(error)).lower()}).")
    return unreachable(file, error)
