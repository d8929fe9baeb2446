"""Copies the records of a trunk: a longer run takes over the rows that a shorter one wrote before its cooldown.

The rows are then its own, as if it had written them. `config/cooldown.py` says what a trunk is, and
`training/branch.py` takes the checkpoint over.
"""

from __future__ import annotations

import os
import re
import shutil

from experiments.errors import RecordError
from experiments.records.run_folder import RunDir, parse_row
from experiments.records.run_lock import VALIDATION_METRIC
from experiments.records.storage import replace_atomically, storage_errors

PREVIEW = re.compile(r"(?:images|routing)_([0-9]{12})\.png")
"""Matches the pictures that training has sampled after a number of images."""


def has_begun(run_dir: RunDir) -> bool:
    """Returns whether a run goes on from its own records, so that it needs no trunk any more.

    A run that was stopped while it took over its trunk has not begun. Records that cannot be read count as begun,
    because training reports what is wrong with them.
    """
    if not os.path.lexists(run_dir.run_json):
        return False
    if any(run_dir.checkpoints.glob("images_*")):
        return True
    try:
        status, parent = run_dir.read_status(), run_dir.read_run().parent
        return bool(status is not None and status.checkpoint_images) or parent is None or not parent.is_trunk
    except RecordError:
        return True


def copy_records(parent: RunDir, run_dir: RunDir, images_seen: int) -> None:
    """Copies what the training of `parent` has recorded up to `images_seen`: rows, and pictures of samples.

    Values that were measured afterwards (`ecdit evaluate`) are left out, because this run would not have them. Raises
    `StorageError` where they cannot be written, and `RecordError` where rows cannot be read.
    """
    for source, copy in (
        (parent.steps, run_dir.steps),
        (parent.routing, run_dir.routing),
        (parent.evals, run_dir.evals),
    ):
        if source.is_file():
            replace_atomically(copy, _rows_of_training(source.read_bytes(), images_seen))
    with storage_errors(run_dir.samples):
        for picture in sorted(parent.samples.glob("*.png")):
            found = PREVIEW.fullmatch(picture.name)
            if found is not None and int(found[1]) <= images_seen:
                run_dir.samples.mkdir(exist_ok=True)
                shutil.copyfile(picture, run_dir.samples / picture.name)


def _rows_of_training(content: bytes, images_seen: int) -> bytes:
    return b"".join(line + b"\n" for line in content.split(b"\n") if _is_of_training(line, images_seen))


def _is_of_training(line: bytes, images_seen: int) -> bool:
    row = parse_row(line) or {}
    metric, written_at = row.get("metric"), row.get("images_seen")
    if isinstance(metric, str) and not VALIDATION_METRIC.fullmatch(metric) and not row.get("while_training"):
        return False
    return isinstance(written_at, int) and written_at <= images_seen
