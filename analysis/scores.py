"""The metrics of sampled images as rows of runs and arms: what alignment, quality and guidance figures are made of.

A row is one measured value in the units of its axis, with the run it belongs to. Which rows may stand beside each
other is decided in `conditions.py`. Means are over seeds.
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
    Measured,
    Metric,
    at_one_guidance,
    conditions_of,
    same_conditions,
    sampled_like,
)
from analysis.load import MissingDataError, Records
from analysis.parameters import COUNTS
from analysis.tables import INFERENCE

SCORE = Metric("shapes-geneval", "shapes-geneval (%)", 100.0, True)
HELD_OUT = Metric("shapes-geneval-held-out", "shapes-geneval (%)\non held-out looks", 100.0, True)
FRECHET = Metric("frechet-shapes", "frechet-shapes\n(lower is better)", 1.0, False)
DIVERGENCE = Metric("branch_divergence", "Divergence of the\nbranches (0 to 1)", 1.0, False, of_dense=False)
SECONDS = Metric(INFERENCE, "Measured time per image (s)", 1.0, False)

EVALUATE = "Measure it with: ecdit evaluate --metrics"
PLACES: dict[Along | None, str] = {
    None: "its end",
    "guidance": "several guidance scales at its end",
    "images_seen": "several points of its training",
}
WAYS_OUT: dict[Along | None, str] = {
    None: f"{EVALUATE} shapes-geneval,frechet-shapes RUNS",
    "guidance": f"{EVALUATE} shapes-geneval,frechet-shapes,routing --guidance 1,2,4 RUNS",
    "images_seen": "Measure them while a run trains: ecdit train eval.metric_images=256 ...",
}

ARM = [
    "setting", "study", "arm", "routing.name", "routing.num_experts", "variant", "model.name",
    *(count.column for count in COUNTS.values()),
]  # fmt: skip
RUN = ["run", "seed", "eval.guidance", "final_images"]


def sampled_rows(records: Records, table: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The rows of one metric in the units of its axis, with `ARM`, `RUN`, `guidance`, `conditions`, `batch_images`.

    `seed` is the run's, `noise_seed` the row's. `study` is what the setting of a run says beside its preset: sizes of
    one study may be joined by a line.
    """
    about = table.rename(columns={"images_seen": "final_images"})
    about["study"] = [study_of(*pair) for pair in zip(about["setting"], about["model.name"], strict=True)]
    evals = records.evals[records.evals["metric"] == metric.name]
    rows = about[[*ARM, *RUN]].merge(evals.rename(columns={"seed": "noise_seed"}), on="run")
    settings = {key: json.loads(key) for key in rows["settings_key"].unique()}
    for name in BESIDE_CONDITIONS:
        rows[name] = rows["settings_key"].map({key: given.get(name) for key, given in settings.items()}).astype(float)
    rows["conditions"] = conditions_of(rows)
    return rows.assign(**{name: metric.factor * rows[name] for name in ("value", "interval_low", "interval_high")})


def measured_panels(
    records: Records, table: pd.DataFrame, metrics: Sequence[Metric], along: Along | None = None
) -> list[Measured]:
    """Comparable values of those of `metrics` that were measured; the later ones of images sampled as for the first.

    `along` None: one row per run, at its end and at one guidance scale. `guidance`: all scales, at its end.
    `images_seen`: all points of its training, at one scale. Along something, only runs with several values of the
    first metric count. A `MissingDataError` where nothing was measured, or runs differ in conditions or share no scale.
    """
    found: list[Measured] = []
    for metric in metrics:
        rows = sampled_rows(records, table, metric)
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


def panel_points(panels: Sequence[Measured], *along: str) -> pd.DataFrame:
    """The `arm_means` of every panel below each other, with `metric` and the conditions."""
    means = [arm_means(each.rows, *along).assign(metric=each.metric.name, **each.conditions) for each in panels]
    return pd.concat(means, ignore_index=True)


def seconds_like(records: Records, table: pd.DataFrame, like: Measured) -> pd.DataFrame:
    """One row per run: seconds per image under the sampler settings of `like`, the last measurement; may be empty.

    A `RecordError` where the conditions of the time (device, batch, ...) differ between the runs.
    """
    rows = sampled_like(sampled_rows(records, table, SECONDS), like, same_weights=False)
    last = rows.drop_duplicates("run", keep="last")
    require_same_conditions(last, INFERENCE)
    return last


def arm_means(rows: pd.DataFrame, *along: str) -> pd.DataFrame:
    """By `ARM`, and by `along` where every seed was measured: `value`, `low`, `high`, `spread`, `num_seeds`.

    `spread` says what `low` and `high` are: of several seeds the lowest and highest (`seeds`); of one the 95% interval
    over its images (`images`), or missing.
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
    all_seeds = rows.groupby(["setting", "arm"])["run"].nunique().rename("all_seeds")
    means = means.join(all_seeds, on=["setting", "arm"]).query("num_seeds == all_seeds").drop(columns="all_seeds")
    return means.sort_values(list(along), kind="stable", ignore_index=True) if along else means


def _num_runs(table: pd.DataFrame, metric: Metric) -> int:
    """How many runs can have the metric."""
    return len(table) if metric.of_dense else int((table["routing.name"] != "dense").sum())


def study_of(setting: str, preset: str) -> str:
    """What a setting says beside its preset: sizes of one study may be joined by a line."""
    return setting.removeprefix(preset).removeprefix(", ")
