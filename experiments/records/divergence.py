"""Reads from the status of a run whether it diverged: training or validation met a value that is not finite.

Training ends such a run as `failed`, with a reason that begins with `Not finite after N images`
(`experiments/training/diagnosis.py`). Statuses of earlier versions and of W&B say it in the same words.
"""

from __future__ import annotations

import re

from experiments.records.record_types import Status

NOT_FINITE = re.compile(r"Not finite after (\d[\d,]*) images")


def diverged_at(status: Status) -> int | None:
    """Returns the images after which a run diverged, or None for a run that did not, whatever else ended it."""
    found = NOT_FINITE.match(status.reason or "") if status.state == "failed" else None
    return None if found is None else int(found[1].replace(",", ""))


def said_diverged(status: Status) -> str:
    """Returns the reason of a run that diverged, as `diverged at 1,280 images: the output of blocks.1 (loss)`."""
    return NOT_FINITE.sub(r"diverged at \1 images", status.reason or "", count=1)
