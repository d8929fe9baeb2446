"""Finds the weights that `train.init_from` names: those of a finished run, of one checkpoint, or exported ones.

Only the small files that describe weights are read, so that a mistake shows before torch is imported. The fingerprint
identifies the weights by the checksums of their files: a path may hold another run later.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import ConfigError, RecordError
from experiments.inputs import MAX_ROWS_BYTES
from experiments.records.exported_record import Exported, read_exported
from experiments.records.record_types import FILE_OF_WEIGHTS, ParentRecord, RunRecord, StepRow, Weights
from experiments.records.run_folder import RunDir
from experiments.records.strict_reading import last_rows, read_object
from experiments.text import printable, shortened

CHECKPOINT = re.compile(r"images_([0-9]{12})")
STATE_FILE = "state.json"
"""The file of a checkpoint that names its other files with their checksums."""
FINGERPRINT_DIGITS = 16
BRING_BACK = "Name another run, or bring its checkpoint back."
GOES_ON = "A run that has begun goes on without it: name its folder with --run-dir."


@dataclass(frozen=True)
class ParentWeights:
    """The weights of another run, from which a run begins."""

    folder: RunDir
    """The folder of the run, or that of exported weights."""
    record: RunRecord
    images_seen: int
    weights: Weights
    fingerprint: str
    checkpoint: Path | None
    """The folder of the checkpoint; None for exported weights."""
    exported: Exported | None = None

    @property
    def description(self) -> Path:
        """Returns the file that holds the settings of the run."""
        return self.folder.run_json if self.exported is None else self.folder.exported

    def as_record(self) -> ParentRecord:
        """Returns what a run that begins from these weights records of them."""
        record = self.record
        return ParentRecord(
            name=record.name,
            config_id=record.config_id,
            images=self.images_seen,
            path=str(self.checkpoint or self.folder.path),
            router=str(record.config["routing"]["name"]),
            weights=self.weights,
            fingerprint=self.fingerprint,
            train_flops=self.images_seen * _flops_per_image(self),
            parent=record.parent,
        )


def find_parent(path: Path, weights: Weights) -> ParentWeights:
    """Returns the weights at `path`, the value of `train.init_from`.

    Raises `ConfigError` where there are none, or only weights of the other kind, and `RecordError` where a run is
    unfinished or cannot be read.
    """
    folder = RunDir(path)
    if os.path.lexists(folder.exported):
        return _exported(folder, weights)
    named = CHECKPOINT.fullmatch(path.name)
    if named is not None:
        folder, images_seen = RunDir(path.absolute().parent.parent), int(named[1])
    if not folder.exists():
        raise ConfigError(
            f"train.init_from={shortened(printable(str(path)), 200)} is no run, no checkpoint of one and no folder of "
            "exported weights.",
            GOES_ON,
        )
    record = folder.read_run()
    if named is None:
        images_seen = _images_of_finished(folder, path)
    checkpoint = folder.checkpoint(images_seen)
    return ParentWeights(folder, record, images_seen, weights, _fingerprint(checkpoint, weights), checkpoint)


def _exported(folder: RunDir, weights: Weights) -> ParentWeights:
    exported = read_exported(folder)
    if exported.weights != weights:
        raise ConfigError(
            f"train.init_from={folder.path} holds {exported.weights} weights, and train.init_weights={weights} asks "
            "for others.",
            f"Use train.init_weights={exported.weights}.",
        )
    return ParentWeights(
        folder, exported.record, exported.images_seen, weights, _digest(exported.sha256), None, exported
    )


def _images_of_finished(folder: RunDir, path: Path) -> int:
    status = folder.read_status()
    if status is None or status.state != "done":
        stands = "it has no status" if status is None else f"{status.state} after {status.images_seen:,} images"
        raise RecordError(
            f"train.init_from={path} is not finished ({stands}), so that its newest checkpoint may change.",
            _finish_or_name_checkpoint(folder),
        )
    return status.images_seen


def _finish_or_name_checkpoint(folder: RunDir) -> str:
    """Returns the way out for a run that is not finished; it names the newest checkpoint that the folder holds."""
    named = [path for path in folder.checkpoints.glob("images_*") if CHECKPOINT.fullmatch(path.name)]
    complete = [path for path in named if os.path.isfile(path / STATE_FILE)]
    if not complete:
        return "Finish it: it holds no checkpoint that could be named in its place."
    return f"Finish it, or name one of its checkpoints, such as {max(complete)}."


def _fingerprint(checkpoint: Path, weights: Weights) -> str:
    state = checkpoint / STATE_FILE
    if not state.is_file():
        raise RecordError(f"{checkpoint} holds no complete checkpoint.", BRING_BACK)
    sums = read_object(state, BRING_BACK, MAX_ROWS_BYTES).get("sha256")
    prefix = FILE_OF_WEIGHTS[weights]
    ours = {name: digest for name, digest in sums.items() if name.startswith(prefix)} if isinstance(sums, dict) else {}
    if not ours:
        raise RecordError(f"{state} names no file of {weights} weights.", BRING_BACK)
    return _digest(ours)


def _digest(sums: dict[str, str]) -> str:
    text = json.dumps(sums, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def _flops_per_image(parent: ParentWeights) -> float:
    """Returns the mean training FLOPs of an image: the executed ones where the run has recorded any.

    They are those of the last row up to the checkpoint, after which a long run has written many more rows.
    """
    for row in last_rows(parent.folder.steps, StepRow, b'"executed_flops"', anywhere=True):
        if 0 < row.get("images_seen", 0) <= parent.images_seen and row.get("executed_flops"):
            return float(row["executed_flops"] / row["images_seen"])
    return float(parent.record.train_flops_per_image)
