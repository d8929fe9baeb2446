"""Puts executed training FLOPs in the place of planned ones, for every table, fit and figure at once.

The plan counts the slots that a router was given, and a router that decides by thresholds may compute more or fewer of
them. A run that recorded `executed_flops` differs from its plan. The loader passes its frames through `as_executed`, so
that `flops` of `steps` and `train_flops_per_image` of `runs` are the executed ones wherever they are known, and nothing
downstream has to ask. The planned ones stay in `planned_flops` and `planned_train_flops_per_image`.

A run that began from the weights of another one (`train.init_from`) has been paid for there in part. `runs` has this in
`flops_before` and `images_before`, which are 0 for other runs, and `flops` of `steps` and of curves includes it. Of a
merged run `images_before` also has the images of all parts but the first, as its FLOPs are those of all.
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
    means = pd.Series(
        (last["executed_flops"].astype("float64") / last["images_seen"]).to_numpy(), index=last["run"].astype("str")
    )
    planned = runs["train_flops_per_image"]
    measured = runs["run"].map(means).astype("float64")
    runs = runs.assign(planned_train_flops_per_image=planned, executed_train_flops_per_image=measured)
    if (runs["flops_before"] > 0).any():
        steps["flops"] += steps["run"].map(runs.set_index("run")["flops_before"]).astype("float64")
    if measured.notna().any():
        runs["train_flops_per_image"] = measured.fillna(planned.astype("float64"))
    return runs, steps


def flops_at(curves: pd.DataFrame, runs: pd.DataFrame, steps: pd.DataFrame) -> pd.Series[float]:
    """Returns the training FLOPs spent at `images_seen` of each row of `curves`, which has a column `run`.

    Those that its first weights have cost are included. A run that followed its plan spends the same on every image.
    The others are interpolated between the rows of `steps`, because their cost may change over training.
    """
    per_image = curves["run"].map(runs.set_index("run")["planned_train_flops_per_image"])
    before = curves["run"].map(runs.set_index("run")["flops_before"]).astype(float)  # of no curves it would be of texts
    flops = curves["images_seen"] * per_image.astype(float) + before
    executed = set(runs.loc[runs["executed_train_flops_per_image"].notna(), "run"])
    if executed:
        ours = curves[curves["run"].isin(executed)]
        flops[ours.index] = interpolated(ours, steps, "flops", before[ours.index])
    return flops


def interpolated(curves: pd.DataFrame, steps: pd.DataFrame, column: str, first: pd.Series[float]) -> pd.Series[float]:
    """Returns a column of `steps` at `images_seen` of each row of `curves`, missing where a run has no steps.

    It is interpolated between the rows of the run, from `first` at 0 images. The millions of rows that `steps` may have
    are sorted by run once, because looking for those of each run would take as often as there are runs.
    """
    run_of_row, names = pd.factorize(steps["run"])
    ends = np.cumsum(np.bincount(run_of_row, minlength=len(names)))
    rows_by_run = dict(zip(names, np.split(np.argsort(run_of_row, kind="stable"), ends)[:-1], strict=True))
    images, values = steps["images_seen"].to_numpy(), steps[column].to_numpy()
    at, start = curves["images_seen"].to_numpy(), first.to_numpy()
    found = np.full(len(curves), np.nan)
    for run, places in curves.groupby("run", sort=False).indices.items():
        if run in rows_by_run:
            rows = rows_by_run[run]
            known = np.append(0.0, images[rows]), np.append(start[places[0]], values[rows])
            found[places] = np.interp(at[places], *known)
    return pd.Series(found, index=curves.index)


def train_flops(runs: pd.DataFrame) -> pd.Series[float]:
    """Returns the FLOPs of the whole training of each run, with those that its first weights have cost."""
    return runs["images_seen"].astype(float) * runs["train_flops_per_image"].astype(float) + runs["flops_before"]


def after_parents(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns `rows` with `images_seen` that include those on which first weights were trained."""
    before = rows["run"].astype("str").map(runs.set_index("run")["images_before"]).astype("int64")
    return rows.assign(images_seen=rows["images_seen"] + before)


def with_images_before(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns `runs` with `images_seen` that include those on which first weights were trained, as `train_flops` does.

    What is computed from the images of a run itself, such as `train_flops`, has to be computed before.
    """
    return runs.assign(images_seen=runs["images_seen"] + runs["images_before"].astype("int64"))


COUNTED_BEFORE = "Images and FLOPs include those of the runs that first weights come from; seconds do not."
"""The note of figures and tables that compare by compute, where a run began from the weights of another one."""


def notes_on_parents(runs: pd.DataFrame) -> list[str]:
    """Returns `COUNTED_BEFORE` where any of `runs` began from the weights of another run, or was merged from others."""
    return [COUNTED_BEFORE] if (runs[["flops_before", "images_before"]] > 0).any(axis=None) else []
