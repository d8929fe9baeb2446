"""Reads checkpoints as stretches of parameters by name, whatever layout wrote them.

`checkpoint_files.py` describes the format and writes it; `restore.py` continues training from a checkpoint. A process
reads, and checks, only the shards that hold what it asks for. Loading never executes code: state is JSON,
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
from experiments.inputs import MAX_ROWS_BYTES, read_input, sha256_of_files
from experiments.records.run_folder import RunDir
from experiments.text import printable, shortened
from experiments.training.checkpoint_contents import (
    average_keys,
    require_stretches,
    require_well_formed,
    tensor_key,
)
from experiments.training.checkpoint_files import (
    FORMAT_VERSION,
    TENSOR_FILES,
    Stretches,
    sha256_of_content,
    shard_name,
)
from experiments.training.checkpoint_list import START_ANEW, is_missing, saved_checkpoints, unreachable

NO_FILE = frozenset({errno.ENOTDIR, errno.EISDIR, errno.EINVAL})
"""The error numbers of opening something that is not a regular file."""


class DamagedCheckpointError(CheckpointError):
    """One checkpoint cannot be used, but an older one may be usable."""


Agree = Callable[[CheckpointError | None], CheckpointError | None]
"""Takes this process's error, if any, and returns the first error of any process of the run. Collective."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the state of the training loop, and tensors that are read on demand."""

    path: Path
    state: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    stretches: list[Stretches]
    """The elements [start, stop) of every flattened parameter that each shard holds."""
    opened: dict[Path, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def images_seen(self) -> int:
        """Returns the images after which it was taken."""
        return int(self.state["images_seen"])

    @property
    def ema_widths(self) -> tuple[float, ...]:
        """Returns the widths of the averages of `train.ema=power`; none with `train.ema=halflife`."""
        return tuple(self.state.get("ema_widths", ()))

    def read(self, file: str, name: str, start: int, stop: int, state: str = "") -> Tensor:
        """Reads the elements [start, stop) of the flattened parameter `name`, fp32, and no other bytes.

        `file` is `weights`, `ema` or `optimizer`. `state` names the optimizer state, such as `exp_avg`, or an average
        beside the first one (`average_keys`).
        """
        key = tensor_key(name, state)
        parts = [self._part(file, shard, key, *bounds) for shard, bounds in self._overlaps(name, start, stop)]
        assert sum(part.numel() for part in parts) == stop - start, f"{name} [{start}, {stop}) is not in {self.path}"
        return parts[0] if len(parts) == 1 else torch.cat([*parts, torch.empty(0)])

    def full(self, file: str) -> dict[str, Tensor]:
        """Reads every parameter in full, by name."""
        return {name: self.read(file, name, 0, math.prod(shape)).view(shape) for name, shape in self.shapes.items()}

    def shards_of(self, wanted: Mapping[str, tuple[int, int]]) -> list[int]:
        """Returns the numbers of the shards that hold any element of the `wanted` stretches."""
        found = {shard for name, bounds in wanted.items() for shard, _ in self._overlaps(name, *bounds)}
        return sorted(found)

    def _overlaps(self, name: str, start: int, stop: int) -> list[tuple[int, tuple[int, int, int]]]:
        """Returns the shards that overlap [start, stop) of a parameter, in the order of its elements.

        Each comes with (low, high, size): [low, high) is the overlap within the shard's stretch, which has `size`
        elements.
        """
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
        else:  # a whole parameter: only the rows that hold these elements are read
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
    """Opens the newest checkpoint whose `files` are intact; returns None when the run has none.

    `wanted` has the stretches that this process will read, all by default; only the shards that hold them are checked.
    `paths` are the checkpoints to choose from, oldest first. `agree` makes several processes take the same one.
    A damaged checkpoint is skipped with a message through `say`. Raises `CheckpointError` when all are damaged, when
    one belongs to another config or version or cannot be read, and when the records mention one but none is there.
    """
    complete = saved_checkpoints(run_dir, say) if paths is None else paths
    for path in reversed(complete):
        trouble: CheckpointError | None = None
        found = None
        try:
            found = open_checkpoint(path, config_id, files, wanted)
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


def open_checkpoint(
    path: Path, config_id: str, files: Sequence[str], wanted: Mapping[str, tuple[int, int]] | None = None
) -> Checkpoint:
    """Opens one checkpoint, and checks those of its `files` whose shards hold `wanted`, by default all shards.

    Raises `DamagedCheckpointError` where one of them is damaged or missing, and `CheckpointError` as `load_newest`.
    """
    content = read_description(path, config_id)
    stretches = [{name: tuple(bounds) for name, bounds in shard.items()} for shard in content["stretches"]]
    shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
    checkpoint = Checkpoint(path, content["state"], shapes, stretches)
    shards = range(len(stretches)) if wanted is None else checkpoint.shards_of(wanted)
    for shard in shards:
        for file in files:
            name = shard_name(file, shard, len(stretches))
            _require_whole(path / name, content["sha256"].get(name, ""))
            if file != "optimizer":
                states = average_keys(checkpoint.ema_widths) if file == "ema" else [""]
                _require_true(path / name, require_stretches, path / name, stretches[shard], shapes, states)
    return checkpoint


def read_description(path: Path, config_id: str) -> dict[str, Any]:
    """Returns the content of `state.json` of the checkpoint at `path`; its tensors are not read.

    Raises `DamagedCheckpointError`, and `CheckpointError` where it is of another config or format or cannot be reached.
    """
    content = _read_state(path)
    _require_same_run(path, content, config_id)
    _require_true(path, require_well_formed, content)
    return content


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
    """Runs a check of `checkpoint_contents.py` and raises `DamagedCheckpointError` where it fails."""
    try:
        check(*arguments)
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{file} is damaged ({error}).") from error


def _require_whole(file: Path, digest: str) -> None:
    try:
        whole = sha256_of_files(file) == digest
    except OSError as error:
        raise _not_read(file, error) from error
    if not whole:
        raise DamagedCheckpointError(f"{file} is damaged (its checksum does not match).")


def _not_read(file: Path, error: OSError) -> CheckpointError:
    """Returns the error for a file that cannot be read.

    A file that is missing or not a regular file counts as damage, so that an older checkpoint is tried. A file that
    cannot be reached may come back, so that training must not go on without it.
    """
    if is_missing(file, error) or error.errno in NO_FILE:
        return DamagedCheckpointError(f"{file} is damaged ({(error.strerror or str(error)).lower()}).")
    return unreachable(file, error)
