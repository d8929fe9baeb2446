"""Puts executed training FLOPs in the place of planned ones, for every table, fit and figure at once.

The plan counts the slots that a router was given, and a router that decides by thresholds may compute more or fewer of
them. A run that recorded `executed_flops` differs from its plan. The loader passes its frames through `as_executed`, so
that `flops` of `steps` and `train_flops_per_image` of `runs` are the executed ones wherever they are known, and nothing
downstream has to ask. The planned ones stay in `planned_flops` and `planned_train_flops_per_image`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd


def as_executed(runs: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns both frames with executed FLOPs in place of planned ones, which get columns of their own.

    `executed_train_flops_per_image` of `runs` is the mean over training, and missing where the run followed its plan.
    """
    executed = steps["executed_flops"].astype("float64")
    steps = steps.assign(flops=executed.fillna(steps["flops"]), planned_flops=steps["flops"])
    last = steps[executed.notna()].drop_duplicates("run", keep="last")
    means = pd.Series((last["flops"] / last["images_seen"]).to_numpy(), index=last["run"].astype("str"))
    planned = runs["train_flops_per_image"]
    measured = runs["run"].map(means).astype("float64")
    runs = runs.assign(planned_train_flops_per_image=planned, executed_train_flops_per_image=measured)
    if measured.notna().any():
        runs["train_flops_per_image"] = measured.fillna(planned.astype("float64"))
    return runs, steps


def flops_at(curves: pd.DataFrame, runs: pd.DataFrame, steps: pd.DataFrame) -> pd.Series[float]:
    """Returns the training FLOPs spent at `images_seen` of each row of `curves`, which has a column `run`.

    A run that followed its plan spends the same on every image. The others are interpolated between the rows of
    `steps`, from 0 on, because their cost may change over training.
    """
    per_image = curves["run"].map(runs.set_index("run")["planned_train_flops_per_image"])
    flops = curves["images_seen"] * per_image.astype(float)
    executed = set(runs.loc[runs["executed_train_flops_per_image"].notna(), "run"])
    for run, group in curves[curves["run"].isin(executed)].groupby("run", sort=False):
        rows = steps[steps["run"] == run]
        images, spent = (np.append(0.0, rows[column].to_numpy()) for column in ("images_seen", "flops"))
        flops[group.index] = np.interp(group["images_seen"], images, spent)
    return flops
