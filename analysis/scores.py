"""The metrics of sampled images as rows of runs and arms, from which alignment, quality and guidance figures are drawn.

A row is one measured value in the units of its axis, with the run it belongs to. `conditions.py` decides which rows are
comparable. Means are over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.comparable import require_same_conditions
from analysis.conditions import (
    BESIDE_CONDITIONS,
    Along,
    MetricRows,
    at_one_guidance,
    conditions_of,
    same_conditions,
    sampled_like,
)
from analysis.executed_flops import after_parents
from analysis.load_records import MissingDataError, Records
from analysis.parameter_counts import COUNTS
from analysis.run_table import INFERENCE
from experiments.config.metric_row import RecordedValue
from experiments.config.metrics import METRICS

SCORE = METRICS["shapes-geneval"].values[0]
SECONDS = METRICS["inference-time"].values[0]

EVALUATE = "Measure it with: ecdit evaluate"
"""The command measures what fits the data of each run, unless `--metrics` says otherwise."""
PLACES: dict[Along | None, str] = {
    None: "its end",
    "guidance": "several guidance scales at its end",
    "images_seen": "several points of its training",
    "ema_width": "several widths of the average of its weights",
}
WAYS_OUT: dict[Along | None, str] = {
    None: f"{EVALUATE} RUNS",
    "guidance": f"{EVALUATE} --guidance 1,2,4 RUNS",
    "images_seen": "Measure them while a run trains: ecdit train eval.metric_images=256 ...",
    "ema_width": f"{EVALUATE} --metrics validation-loss --ema 0.03,0.05,0.1,0.15 RUNS (trained with train.ema=power)",
}

ARM = [
    "setup", "study", "arm", "routing.name", "routing.num_experts", "variant", "model.name",
    *(count.column for count in COUNTS.values()),
]  # fmt: skip
RUN = ["run", "seed", "eval.guidance", "final_images"]


def sampled_rows(records: Records, table: pd.DataFrame, metric: RecordedValue) -> pd.DataFrame:
    """Returns the rows of one metric in the units of its axis.

    Their columns are `ARM`, `RUN`, those of `evals`, `BESIDE_CONDITIONS` and `conditions`. `seed` is that of the
    run, `noise_seed` that of the sampling noise, and `study` is `study_of` the run's setup.
    """
    about = after_parents(table, table).rename(columns={"images_seen": "final_images"})
    about["study"] = [study_of(*pair) for pair in zip(about["setup"], about["model.name"], strict=True)]
    evals = records.evals[records.evals["metric"] == metric.name]
    rows = after_parents(about[[*ARM, *RUN]].merge(evals.rename(columns={"seed": "noise_seed"}), on="run"), table)
    settings = {key: json.loads(key) for key in rows["settings_key"].unique()}
    for name in BESIDE_CONDITIONS:
        rows[name] = rows["settings_key"].map({key: given.get(name) for key, given in settings.items()}).astype(float)
    rows["conditions"] = conditions_of(rows)
    return rows.assign(**{name: metric.factor * rows[name] for name in ("value", "interval_low", "interval_high")})


def measured_panels(
    records: Records, table: pd.DataFrame, metrics: Sequence[RecordedValue], along: Along | None = None
) -> list[MetricRows]:
    """Returns comparable values of each of `metrics` that was measured.

    The later metrics are restricted to images that were sampled like those of the first. With `along` None there is one
    row per run, at the end of training and at one guidance scale; with `guidance`, all scales at the end of training;
    with `images_seen`, all points of training at one scale; with `ema_width`, all reconstructed averages at the end of
    training, at one scale. In the last three cases only runs with several values of the first metric count. Raises
    `MissingDataError` where nothing was measured, where the runs share no conditions, or where they share no guidance
    scale.
    """
    found: list[MetricRows] = []
    for metric in metrics:
        rows = sampled_rows(records, table, metric)
        rows = rows[rows["ema_width"].notna() == (along == "ema_width")]
        if along != "images_seen":
            rows = rows[rows["images_seen"] == rows["final_images"]]
        if along is not None and not found:
            rows = rows[rows.groupby(["run", "conditions"])[along].transform("nunique") > 1]
        rows = sampled_like(rows, found[0]) if found else rows
        if len(rows):
            measured = same_conditions(rows, metric, _num_runs(table, metric), along)
            found.append(measured if along == "guidance" else at_one_guidance(measured))
    if not found:
        names = " or ".join(metric.name for metric in metrics)
        raise MissingDataError(f"No run has {names} at {PLACES[along]}.", WAYS_OUT[along])
    return found


def panel_points(panels: Sequence[MetricRows], *along: str) -> pd.DataFrame:
    """Returns the `arm_means` of all panels in one table, with columns for `metric` and the conditions."""
    means = [arm_means(each.rows, *along).assign(metric=each.metric.name, **each.conditions) for each in panels]
    return pd.concat(means, ignore_index=True)


def seconds_like(records: Records, table: pd.DataFrame, like: MetricRows) -> pd.DataFrame:
    """Returns the last measured seconds per image of each run under the sampler settings of `like`; may be empty.

    Raises `RecordError` where the conditions of the timing (device, batch, ...) differ between the runs.
    """
    rows = sampled_like(sampled_rows(records, table, SECONDS), like, same_weights=False)
    last = rows.drop_duplicates("run", keep="last")
    require_same_conditions(last, INFERENCE)
    return last


def arm_means(rows: pd.DataFrame, *along: str) -> pd.DataFrame:
    """Returns the mean over seeds of each arm (`ARM`) and value of `along`, where all seeds of the arm were measured.

    The columns are `value`, `low`, `high`, `spread` and `num_seeds`. `spread` says what `low` and `high` are: the
    lowest and highest of several seeds (`seeds`), or the 95% interval over the images of a single seed (`images`). It
    is empty where a single seed has no interval.
    """
    groups = rows.groupby([*ARM, *along], sort=False)
    means = groups.agg(
        value=("value", "mean"), low=("value", "min"), high=("value", "max"), num_seeds=("run", "nunique")
    )
    alone = means["num_seeds"] == 1
    for end in ("low", "high"):
        means[end] = means[end].where(~alone, groups[f"interval_{end}"].first())
    means["spread"] = np.select([~alone, means["low"].notna()], ["seeds", "images"], "")
    means = means.reset_index()
    all_seeds = rows.groupby(["setup", "arm"])["run"].nunique().rename("all_seeds")
    means = means.join(all_seeds, on=["setup", "arm"]).query("num_seeds == all_seeds").drop(columns="all_seeds")
    return means.sort_values(list(along), kind="stable", ignore_index=True) if along else means


def _num_runs(table: pd.DataFrame, metric: RecordedValue) -> int:
    """Returns how many runs can have the metric; some metrics are not defined for dense models."""
    return len(table) if metric.of_dense else int((table["routing.name"] != "dense").sum())


def study_of(setup: str, preset: str) -> str:
    """Returns the setup without its preset; runs of different sizes that agree in it may be joined by a line."""
    return setup.removeprefix(preset).removeprefix(", ")
