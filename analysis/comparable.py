"""Whether runs may stand in one comparison: same data, same validation set, same conditions of a measurement.

Refused with the difference named, because a figure over runs that saw different data looks exactly like a result.
What may differ between the runs of a comparison, and how that makes arms and settings, is the business of `arms.py`.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.load import Records
from experiments.errors import RecordError

SAME_IN_A_COMPARISON = ("data.", "flow.", "eval.images", "eval.batch_images")
"""What the training data and the fixed validation set (image, t, noise) depend on."""

CONDITIONS = ("batch_images", "steps", "sampler", "guidance", "precision", "device", "num_threads")
"""The settings under which time is measured; the others tell how the measurement went."""

MEASURED_ON = ("device", "num_threads", "precision", "world")
"""What the seconds of training depend on, beside the run itself."""

WAY_OUT = "Name only the folders that belong together."


def require_same_data(records: Records) -> None:
    """A `RecordError` naming the first setting of the data or validation set that differs between the runs."""
    runs = records.runs
    for column in (name for name in runs.columns if name.startswith(SAME_IN_A_COMPARISON)):
        _refuse_difference(column, runs[column], runs["run"])
    validation = records.evals[records.evals["metric"] == "val_loss"]
    for column in ("num_samples", "seed"):
        _refuse_difference(f"{column} of val_loss", validation[column], validation["run"])


def require_same_conditions(measurements: pd.DataFrame, metric: str) -> None:
    """A `RecordError` naming the first condition in the `settings` of eval rows of one metric that differs."""
    for name in CONDITIONS:
        values = pd.Series([(given or {}).get(name) for given in measurements["settings"]], dtype=object)
        _refuse_difference(f"{name} of {metric}", values, measurements["run"].reset_index(drop=True))


def last_shared_measurement(measurements: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per run, under the last written conditions that all share. A `RecordError` where there are none."""
    conditions = [tuple(_text((given or {}).get(name)) for name in CONDITIONS) for given in measurements["settings"]]
    by_conditions = measurements.groupby(pd.Series(conditions, index=measurements.index, dtype=object), sort=False)
    shared = [rows for _, rows in by_conditions if rows["run"].nunique() == measurements["run"].nunique()]
    if not shared:
        last = measurements.drop_duplicates("run", keep="last")
        require_same_conditions(last, metric)
        return last
    written_last = max(shared, key=lambda rows: int(rows.index.max()))
    return written_last.drop_duplicates("run", keep="last")


def first_difference(what: str, values: pd.Series[Any], runs: pd.Series[Any]) -> str | None:
    """Two runs between which `values` differ, in one sentence; None where all are equal."""
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
