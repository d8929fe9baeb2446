"""The run table, which has one row per finished run with its arm and its final values, and tables as Markdown.

Final values are those at the last evaluation. Losses are of the raw weights unless the column says `_ema`. A value that
was not measured is missing (NaN), never 0. Means over seeds are made in `arm_table.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.comparable import last_shared_measurement, require_same_data
from analysis.diverged_runs import finished_arms
from analysis.escaping import markdown_text
from analysis.load_records import MissingDataError, Records

FINAL_METRICS = {
    "val_loss": ("val_loss", "raw"),
    "val_loss_ema": ("val_loss", "ema"),
    "val_loss_same_t": ("val_loss_same_t", "raw"),
    "dropped_share": ("dropped_share", "raw"),
    "dropped_share_same_t": ("dropped_share_same_t", "raw"),
    "val_loss_training_decision": ("val_loss_training_decision", "raw"),
    "executed_flops_per_image": ("executed_flops_per_image", "raw"),
    "executed_flops_per_image_same_t": ("executed_flops_per_image_same_t", "raw"),
}
INFERENCE = "inference_seconds_per_image"


def run_table(records: Records) -> pd.DataFrame:
    """Returns `records.runs` with the columns of `with_arms` and the final values of each run.

    These columns are added: the keys of `FINAL_METRICS`; `inference_seconds_per_image`, the last measurement under
    conditions that all runs share; `train_loss`, from the last row of `steps`; `train_seconds`; `images_per_second`, a
    median over rows, which a pause between two of them does not move; and `utilisation`, the activated FLOPs per second
    of training divided by the fastest matmul that the run measured on its machine, times its processes. Raises
    `RecordError` when runs differ in their data, or measurements of inference time in their conditions.
    """
    require_same_data(records)
    table = finished_arms(records)
    for column, (metric, weights) in FINAL_METRICS.items():
        table[column] = table["run"].map(_last_values(records.evals, metric, weights)).astype("float64")
    inference = last_shared_measurement(records.evals[records.evals["metric"] == INFERENCE], INFERENCE)
    table[INFERENCE] = table["run"].map(inference.set_index("run")["value"])
    by_run = records.steps.groupby("run", observed=True)
    table["train_loss"] = table["run"].map(by_run["loss"].last())
    table["train_seconds"] = table["run"].map(by_run["seconds"].last())
    table["images_per_second"] = table["run"].map(by_run["images_per_second"].median())
    peak = table["matmul_flops_per_second"].astype("float64") * table["world"]
    table["utilisation"] = table["images_per_second"] * table["train_flops_per_image"] / peak
    return table


def with_losses(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs of a run table that have a final loss, which imported weights have not.

    Raises `MissingDataError` where no run has one.
    """
    kept = table[table["val_loss"].notna()]
    if kept.empty:
        raise MissingDataError("No run has a validation loss.", "Add runs of `ecdit train`.")
    return kept.reset_index(drop=True)


def _last_values(evals: pd.DataFrame, metric: str, weights: str) -> pd.Series[float]:
    rows = evals[(evals["metric"] == metric) & (evals["weights"] == weights)]
    return rows.sort_values("images_seen", kind="stable").groupby("run")["value"].last()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], is_words: Sequence[bool] | None = None) -> str:
    """Writes a table in Markdown. Columns of words (by default the first) are aligned left, the others right."""
    rule = [":--" if left else "--:" for left in is_words or [i == 0 for i in range(len(header))]]
    head, *body = ([markdown_text(cell) for cell in line] for line in (header, *rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body)) + "\n"


def significant(value: float | None, digits: int = 3) -> str:
    """Writes a number with an SI prefix, as `1.23M`, or a dash where it is missing."""
    if is_missing(value):
        return "–"
    assert value is not None
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g}{prefix}"
    return f"{value:.{digits}g}"


def fixed(value: float | None, decimals: int, scale: float = 1.0, unit: str = "") -> str:
    """Writes `value` times `scale` with `decimals` decimals, or a dash where it is missing."""
    return "–" if is_missing(value) else f"{scale * float(value or 0):.{decimals}f}{unit}"


def probability(value: float | None) -> str:
    """Writes a p-value with four decimals; one that would be 0 so is written as smaller than the last decimal."""
    return "<0.0001" if value is not None and value < 0.00005 else fixed(value, 4)


def is_missing(value: float | None) -> bool:
    """Says whether a value is None or NaN."""
    return value is None or math.isnan(value)
