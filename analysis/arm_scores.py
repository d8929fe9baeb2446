"""The scores of sampled images in the comparison of routers: the mean of each arm over its seeds.

Every metric that measures quality has a column where any run has it: those whose row in `experiments.config.metrics`
names the figure `alignment` or `image-quality`. `conditions.py` decides which values are comparable; a score for which
the runs share no conditions has no column, and a note says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from analysis.conditions import MetricRows, foot
from analysis.load_records import MissingDataError, Records
from analysis.scores import arm_means, measured_panels
from experiments.config.metric_row import RecordedValue
from experiments.config.metrics import find_value, values_in

PREFIX = "evals."


@dataclass(frozen=True)
class ArmScores:
    """Means in the recorded units by column, each indexed by setup and arm; and sentences on what they are."""

    means: dict[str, pd.Series[float]]
    notes: list[str]


def arm_scores(records: Records, table: pd.DataFrame) -> ArmScores:
    """Returns the comparable scores at the end of training."""
    measured = set(records.evals["metric"].unique())
    panels: list[MetricRows] = []
    refused: list[str] = []
    for value in [*values_in("alignment"), *values_in("image-quality")]:
        if value.name in measured:
            try:
                panels += measured_panels(records, table, [replace(value, factor=1.0)])
            except MissingDataError as error:
                refused.append(f"{value.name} is not compared: {error}")
    means = {PREFIX + panel.metric.name: arm_means(panel.rows).set_index(["setup", "arm"])["value"] for panel in panels}
    return ArmScores(means, [*foot(panels), *refused])


def score_columns(columns: Iterable[str]) -> dict[str, RecordedValue]:
    """Returns the descriptions of the scores among the `columns` of an arm table, by column."""
    found = {name: find_value(name.removeprefix(PREFIX)) for name in columns if name.startswith(PREFIX)}
    return {name: value for name, value in found.items() if value is not None}
