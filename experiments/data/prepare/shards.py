"""Assigns the rows of a source to the files of a data set, writes these files, and finds those that exist already.

Rows are assigned by number, and rows of one image together; a fixed permutation selects the validation set. A file of
tensors appears atomically, followed by its note (`train-00000.json`): its rows, its checksum, and which rows were left
out and why. A file is made again if its note is missing or unreadable, or belongs to other rows or to another request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save
from torch import Tensor

from experiments.config.prepared_set import FileEntry, SetSplit, Shard
from experiments.data.order import Integers, shuffled
from experiments.data.prepare.encoding import EncodedRows, LeftOutRow
from experiments.data.prepare.request import Request
from experiments.data.prepare.source import SourceRows
from experiments.errors import ConfigError
from experiments.inputs import MAX_ROWS_BYTES, read_input, sha256_of_files
from experiments.records.storage import replace_atomically, storage_errors, write_json_atomic
from experiments.text import printable

EMPTY_CAPTION = "empty-caption"
VALIDATION_SEED = 0
"""The seed of the permutation that selects the validation rows; it does not depend on a run's seed."""
MAX_TRIED_ROWS = 4096
"""The most rows or families that are read to find a usable validation image; nearly always the first is usable."""


@dataclass(frozen=True)
class ShardTask:
    """Describes one file to make: a shard or, without rows, the features of the empty caption."""

    name: str
    split: SetSplit
    rows: tuple[int, ...]


class Note(BaseModel):
    """Describes a file of tensors in JSON beside it. `request` is the digest of the request, or None in older notes."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    rows: str
    request: str | None = None
    entry: Shard | FileEntry
    left_out: tuple[LeftOutRow, ...]


def deal_rows(request: Request, source: SourceRows, is_good: Callable[[int], bool]) -> list[ShardTask]:
    """Returns the tasks of all files of tensors in the order of the index; the first is the empty caption where
    images have captions.

    Where `is_good` accepts none of the rows drawn for validation, which can happen in a small source, more rows are
    drawn until it accepts one. A family of rows stays together, except for rows that are held out of training.

    Raises `ConfigError` where no rows would be left for training or for validation.
    """
    num_rows, num_validation = len(source), request.validation_images
    if num_validation is None:
        num_validation = min(512, max(1, num_rows // 20))
    if not 0 < num_validation < num_rows:
        raise ConfigError(
            f"--validation-images {num_validation} does not fit a source of {num_rows} images.",
            "Some must be left to train on, and at least one to validate with.",
        )
    drawn = shuffled(VALIDATION_SEED, np.arange(num_rows), num_rows)
    if source.families.of_rows is None:
        num_needed = _num_for_a_good_row(([int(row)] for row in drawn[:-1]), is_good)
        validation = np.sort(drawn[: max(num_validation, num_needed)])
    else:
        validation = _whole_families(source, num_validation, is_good)
    rest = np.setdiff1d(np.arange(num_rows), validation, assume_unique=True)
    held_out = np.array([row for row in rest.tolist() if row in source.held_out], dtype=np.int64)
    training = np.setdiff1d(rest, held_out, assume_unique=True)
    splits: tuple[tuple[SetSplit, Any], ...] = (("validation", validation), ("train", training), ("held_out", held_out))
    tasks = [] if request.text == "labels" else [ShardTask(EMPTY_CAPTION, "train", ())]
    for split, rows in splits:
        for number, first in enumerate(range(0, len(rows), request.shard_images)):
            here = tuple(rows[first : first + request.shard_images].tolist())
            tasks.append(ShardTask(f"{split}-{number:05d}", split, here))
    return tasks


def _whole_families(source: SourceRows, num_rows: int, is_good: Callable[[int], bool]) -> Integers:
    """Returns the rows of families that are drawn, each as likely as the others, until they are `num_rows`.

    A family that is larger than what is missing is passed over, unless none would be left. Where none of their rows is
    good, more families are drawn until one has a good row; the last family is left to train on. Rows without a family,
    which cannot be used, are not drawn.

    Raises `ConfigError` where all rows are of one family.
    """
    members: dict[str, list[int]] = {}
    for row, family in enumerate(source.families.of_rows or ()):
        if family is not None:
            members.setdefault(family, []).append(row)
    groups = [members[family] for family in sorted(members)]
    if len(groups) == 1:
        raise ConfigError(
            f"SOURCE {printable(source.path)} has one image that can be used, in {len(groups[0]):,} rows.",
            "Add others: some must be left to train on, and at least one to validate with.",
        )
    order = shuffled(VALIDATION_SEED, np.arange(len(groups)), len(groups)).tolist()
    num_missing = num_rows
    chosen: list[int] = []
    for place in order:
        if len(groups[place]) <= num_missing:
            chosen.append(place)
            num_missing -= len(groups[place])
    if groups and not chosen:
        chosen = [min(range(len(groups)), key=lambda place: len(groups[place]))]
    is_chosen = set(chosen)
    tried = [*chosen, *(place for place in order if place not in is_chosen)][: len(groups) - 1]
    num_needed = _num_for_a_good_row((groups[place] for place in tried), is_good)
    rows = [row for place in tried[: max(len(chosen), num_needed)] for row in groups[place]]
    return np.sort(np.array(rows, dtype=np.int64))


def _num_for_a_good_row(groups: Iterable[Sequence[int]], is_good: Callable[[int], bool]) -> int:
    """Returns how many of `groups` it takes to have a good row; 1 where the first `MAX_TRIED_ROWS` have none."""
    tried = enumerate(islice(groups, MAX_TRIED_ROWS), 1)
    return next((number for number, rows in tried if any(map(is_good, rows))), 1)


@dataclass(frozen=True)
class SetFolder:
    """Writes and checks files in the folder of a data set that is being made; notes carry the digest of the request."""

    path: Path
    request_sha256: str

    def write(self, task: ShardTask, encoded: EncodedRows) -> None:
        """Writes the file and then its note, so that a note never stands beside an incomplete file."""
        path = self.path / f"{task.name}.safetensors"
        with storage_errors(path):
            replace_atomically(path, save(encoded.tensors))
        entry = {"file": path.name, "num_bytes": path.stat().st_size, "sha256": sha256_of_files(path)}
        if task.rows:
            entry |= {
                "split": task.split,
                "num_images": _length(encoded.tensors, "row_N"),
                "num_tokens": None if "label_N" in encoded.tensors else _length(encoded.tensors, "text_MV"),
                **{f"num_cut_{name}": number for name, number in encoded.num_cut.items()},
                "source_sha256": encoded.source_sha256,
            }
        left_out = [asdict(one) for one in encoded.left_out]
        note = {"rows": _rows_sha256(task), "request": self.request_sha256, "entry": entry, "left_out": left_out}
        write_json_atomic(self.path / f"{task.name}.json", note)

    def is_made(self, task: ShardTask, verify: bool) -> bool:
        """Says whether file and note exist and agree in rows and length; `verify` compares the checksum too."""
        note, path = self.read_note(task), self.path / f"{task.name}.safetensors"
        if note is None or note.rows != _rows_sha256(task) or not path.is_file():
            return False
        try:
            same_length = path.stat().st_size == note.entry.num_bytes
            return same_length and (not verify or sha256_of_files(path) == note.entry.sha256)
        except OSError:  # a file that cannot be read is made again
            return False

    def read_note(self, task: ShardTask) -> Note | None:
        """Returns the note of a task; None where there is none, or it is unreadable or of another task or request."""
        try:
            note = Note.model_validate_json(read_input(self.path / f"{task.name}.json", MAX_ROWS_BYTES))
        except (OSError, ValidationError):
            return None
        is_shard = isinstance(note.entry, Shard) and note.entry.split == task.split
        fits = note.entry.file == f"{task.name}.safetensors" and is_shard == bool(task.rows)
        of_request = note.request in (None, self.request_sha256)
        return note if fits and of_request and {one.row for one in note.left_out} <= set(task.rows) else None

    def remove_unfinished(self, task: ShardTask) -> None:
        """Removes temporary files of killed processes; their names hold the process id (see `replace_atomically`)."""
        for path in self.path.glob(f".{task.name}.*.tmp"):
            if not psutil.pid_exists(int(path.name.split(".")[-2])):
                path.unlink(missing_ok=True)


def _length(tensors: dict[str, Tensor], name: str) -> int:
    return len(tensors[name]) if name in tensors else 0


def _rows_sha256(task: ShardTask) -> str:
    """Returns the SHA-256 of the task's row numbers, by which a note is matched to its rows."""
    return hashlib.sha256(np.array(task.rows, dtype=np.int64).tobytes()).hexdigest()
