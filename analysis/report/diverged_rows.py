"""The table of the runs that diverged, in a report and in an export: where, and which run repeats each."""

from __future__ import annotations

import pandas as pd

from analysis.columns import Column
from analysis.diverged_runs import RATE
from analysis.report.document import Block, table
from analysis.report.run_rows import four, whole

DIVERGED_COLUMNS = (
    Column("name", "Run"),
    Column("setup", "Setup"),
    Column("arm", "Arm"),
    Column("seed", "Seed", whole),
    Column(RATE, "Learning rate", "{:g}".format),
    Column("diverged_at_images", "Diverged at images", whole),
    Column("train.images", "of images", whole),
    Column("last_loss", "Last finite val. loss", four),
    Column("retried_by", "Repeated by"),
    Column("retry_rate", "at learning rate", "{:g}".format),
    Column("retry_state", "which is"),
)
NOTE = (
    "These runs met a loss or gradient that is not finite. They are in no mean, test or fit, and the table of arms "
    "counts them. A repetition at another learning rate is a setup of its own."
)


def diverged_blocks(diverged: pd.DataFrame) -> list[Block]:
    """Returns the table of the runs that diverged, or nothing where none did."""
    if diverged.empty:
        return []
    rows = diverged.to_dict("records")
    return [table("diverged", f"The {len(rows):,} runs that diverged", DIVERGED_COLUMNS, rows, NOTE)]
