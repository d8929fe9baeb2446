"""Check that runs may be compared: equal data, equal validation set, equal conditions of a measurement.

Other comparisons are refused, and the message names the difference, because a figure of runs that saw different data
looks exactly like a result. `arms.py` defines what may differ between the runs of a comparison, and how the differences
make arms and setups.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.found_runs import WITHOUT_EFFECT
from analysis.load_records import Records
from experiments.config.blocks import DEFAULT_BLOCK
from experiments.config.data_sets import NO_CAPTIONS
from experiments.errors import RecordError

SAME_IN_A_COMPARISON = ("data.", "eval.images", "eval.batch_images")
"""Prefixes of the settings on which the training data and the fixed validation set (image, t, noise) depend.

Those of `WITHOUT_EFFECT` may differ all the same: a data set may lie in several places.

Objectives (`flow.`) may differ: they make setups of their own, and all losses are on one measure (`shared_measure.py`).
"""

OF_THE_CONDITION = frozenset(f"data.{name}" for name in NO_CAPTIONS) | {"data.num_classes"}
"""Settings of captions or classes, which follow from the block: one block reads captions and another one classes of the
same images. Blocks make setups of their own, so that these must be equal only in runs of one block."""

CONDITIONS = (
    "batch_images", "steps", "sampler", "guidance", "guidance_start", "guidance_stop", "precision", "device",
    "num_threads",
)  # fmt: skip
"""Settings of a measurement of time that must be equal; its other settings only describe the measurement."""
UNRECORDED = {"guidance_start": 0.0, "guidance_stop": 1.0}
"""The values of conditions that the rows of earlier versions do not record: the usual ones, with guidance all along."""

MEASURED_ON = ("device", "num_threads", "precision", "world")
"""Columns of the run table on which the seconds of training depend, besides the settings of the run itself."""

WAY_OUT = "Name only the folders that belong together."


def require_same_data(records: Records) -> None:
    """Raises `RecordError` naming the first setting of the data or validation set that differs between the runs."""
    runs = records.runs
    blocks = runs.get("model.block", pd.Series(DEFAULT_BLOCK, index=runs.index)).fillna(DEFAULT_BLOCK)
    compared = [name for name in runs.columns if name.startswith(SAME_IN_A_COMPARISON)]
    for column in (name for name in compared if not name.startswith(WITHOUT_EFFECT)):
        parts = [part for _, part in runs.groupby(blocks)] if column in OF_THE_CONDITION else [runs]
        for part in parts:
            _refuse_difference(column, part[column], part["run"])
    validation = records.evals[records.evals["metric"] == "val_loss"]
    for column in ("num_samples", "seed"):
        _refuse_difference(f"{column} of val_loss", validation[column], validation["run"])


def require_same_conditions(measurements: pd.DataFrame, metric: str) -> None:
    """Raises `RecordError` naming the first condition that differs in the `settings` of the rows of one metric."""
    for name in CONDITIONS:
        values = pd.Series([_condition(given, name) for given in measurements["settings"]], dtype=object)
        _refuse_difference(f"{name} of {metric}", values, measurements["run"].reset_index(drop=True))


def last_shared_measurement(measurements: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Returns the last row of each run under the conditions that all runs share; of several, the last written ones.

    Raises `RecordError` naming the first difference where the runs share no conditions and their last rows differ.
    """
    conditions = [tuple(_text(_condition(given, name)) for name in CONDITIONS) for given in measurements["settings"]]
    by_conditions = measurements.groupby(pd.Series(conditions, index=measurements.index, dtype=object), sort=False)
    num_runs = measurements["run"].nunique()
    shared = [rows for _, rows in by_conditions if rows["run"].nunique() == num_runs]
    if not shared:
        last = measurements.drop_duplicates("run", keep="last")
        require_same_conditions(last, metric)
        return last
    written_last = max(shared, key=lambda rows: int(rows.index.max()))
    return written_last.drop_duplicates("run", keep="last")


def _condition(settings: dict[str, Any] | None, name: str) -> object:
    return (settings or {}).get(name, UNRECORDED.get(name))


def first_difference(what: str, values: pd.Series[Any], runs: pd.Series[Any]) -> str | None:
    """Returns a sentence that names two runs between which `values` differ, or None where all are equal."""
    shown = values.map(_text)
    first_runs = runs.groupby(shown.to_numpy(), sort=False).first()
    if len(first_runs) < 2:
        return None
    (one, run), (other, other_run) = list(first_runs.items())[:2]
    return f"Runs differ in {what}: {one} in {run}, {other} in {other_run}."


def _refuse_difference(what: str, values: pd.Series[Any], runs: pd.Series[Any]) -> None:
    difference = first_difference(what, values, runs)
    if difference is not None:
        raise RecordError(difference, WAY_OUT)


def _text(value: object) -> str:
    return "nothing" if value is None or value != value else str(value)
