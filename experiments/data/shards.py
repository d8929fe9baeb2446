"""The files of a data set while it is made: which rows go into which, and what is there already.

The rows of a source are dealt by number alone, those of the validation set by a fixed permutation. A file of tensors
appears whole, and then its note (`train-00000.json`): its rows, its checksum, and what was left out and why. A file
without a note is made again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.torch import save
from torch import Tensor

from experiments.config.data_set import SetSplit
from experiments.data.encoding import EncodedRows
from experiments.data.latents import file_sha256
from experiments.data.order import shuffled
from experiments.errors import ConfigError
from experiments.records.storage import replace_atomically, storage_errors, write_json_atomic

EMPTY_CAPTION = "empty-caption"
VALIDATION_SEED = 0
"""Which rows validate does not depend on a run."""


@dataclass(frozen=True)
class Request:
    """What a data set is made of and how."""

    source: str
    vae: str
    t5: str
    clip: str
    image_size: int = 256
    max_tokens: int = 120
    validation_images: int | None = None
    """None: a twentieth of the rows, at most 512."""
    shard_images: int = 1024
    batch_images: int = 16
    split: str = "train"
    subset: str | None = None
    image_column: str | None = None
    caption_column: str | None = None


@dataclass(frozen=True)
class ShardTask:
    """One shard to make; without rows, the file of the empty caption."""

    name: str
    split: SetSplit
    rows: tuple[int, ...]


def deal_rows(request: Request, num_rows: int) -> list[ShardTask]:
    """Every file of tensors, in the order of the index; the first is the empty caption.

    Raises `ConfigError` where nothing would be left to train on or to validate with.
    """
    num_validation = request.validation_images
    if num_validation is None:
        num_validation = min(512, max(1, num_rows // 20))
    if not 0 < num_validation < num_rows:
        raise ConfigError(
            f"--validation-images {num_validation} does not fit a source of {num_rows} images.",
            "Some must be left to train on, and at least one to validate with.",
        )
    validation = np.sort(shuffled(VALIDATION_SEED, np.arange(num_validation), num_rows))
    training = np.setdiff1d(np.arange(num_rows), validation, assume_unique=True)
    splits: tuple[tuple[SetSplit, Any], ...] = (("validation", validation), ("train", training))
    tasks = [ShardTask(EMPTY_CAPTION, "train", ())]
    for split, rows in splits:
        for number, first in enumerate(range(0, len(rows), request.shard_images)):
            here = tuple(rows[first : first + request.shard_images].tolist())
            tasks.append(ShardTask(f"{split}-{number:05d}", split, here))
    return tasks


def write_shard(out: Path, task: ShardTask, encoded: EncodedRows) -> None:
    """The file, then its note: a shard without a note is made again."""
    path = out / f"{task.name}.safetensors"
    with storage_errors(path):
        replace_atomically(path, save(encoded.tensors))
    entry = {"file": path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256([path])}
    if task.rows:
        entry |= {
            "split": task.split,
            "num_images": _length(encoded.tensors, "row_N"),
            "num_tokens": _length(encoded.tensors, "text_MV"),
            "num_cut_t5": encoded.num_cut_t5,
            "num_cut_clip": encoded.num_cut_clip,
            "source_sha256": encoded.source_sha256,
        }
    note = {"rows": _rows_sha256(task), "entry": entry, "left_out": [asdict(one) for one in encoded.left_out]}
    write_json_atomic(out / f"{task.name}.json", note)


def _length(tensors: dict[str, Tensor], name: str) -> int:
    return len(tensors[name]) if name in tensors else 0


def _rows_sha256(task: ShardTask) -> str:
    """Of the row numbers: a note belongs to its rows."""
    return hashlib.sha256(np.array(task.rows, dtype=np.int64).tobytes()).hexdigest()


def is_made(out: Path, task: ShardTask, verify: bool) -> bool:
    """Whether file and note are there and agree; with `verify`, to the last bit."""
    note, path = read_note(out, task), out / f"{task.name}.safetensors"
    if note is None or note["rows"] != _rows_sha256(task) or not path.is_file():
        return False
    same_length = path.stat().st_size == note["entry"]["num_bytes"]
    return same_length and (not verify or file_sha256([path]) == note["entry"]["sha256"])


def remove_unfinished(out: Path, task: ShardTask) -> None:
    """What a process that was killed had begun to write; its number is in the name (`replace_atomically`)."""
    for path in out.glob(f".{task.name}.*.tmp"):
        if not psutil.pid_exists(int(path.name.split(".")[-2])):
            path.unlink(missing_ok=True)


def read_note(out: Path, task: ShardTask) -> dict[str, Any] | None:
    """What was written beside a file of tensors, if it was."""
    path = out / f"{task.name}.json"
    if not path.is_file():
        return None
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return note
