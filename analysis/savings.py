"""Measures what an arm saves against dense at the ends of trainings of several lengths, and how that grows with size.

An intermediate loss of a run is not the loss of a shorter run, because the learning rate has not decayed there. Runs
of several lengths (`optim.schedule=wsd`) end with a decayed rate, so that their final losses are a curve over images,
FLOPs or seconds on which every point is a finished training. The saving of an arm is the horizontal distance between
its curve and that of dense of the same size and seed at the lowest loss that both reach: where the arm ends below
dense, how many times fewer images (FLOPs, seconds) it needs to dense's final loss.

With the curves of three lengths the distance may lie outside of what was run. It is then a limit: an arm that is below
dense's final loss at its shortest length saves at least the ratio of the two lengths, and is counted with that ratio,
which makes a large saving smaller. Where losses rise with length, so that neither curve begins at or below the end of
the other although they have no stretch in common, there is no saving.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.baselines import baselines
from analysis.multiplier import Curve, shift
from analysis.seed_intervals import Interval, interval_of_mean

AXES = ("images_seen", "train_flops", "train_seconds")


def savings(table: pd.DataFrame, size: str) -> pd.DataFrame:
    """Returns `arm`, `size`, `seed`, `axis`, `log_saving` (natural, above 0: the arm needs less) and `is_limit`.

    `table` has a row per run, with the columns `arm`, `arm_kind`, `seed`, `val_loss`, those of `AXES` and the column
    that `size` names. Dense of the same size and seed is the reference; arms without it have no row, and neither have
    curves of fewer than two lengths, and those whose losses rise so that no limit is known.
    """
    return pd.DataFrame(
        [row for _, runs in table.groupby([size, "seed"]) for row in _of_one_seed(runs, size)],
        columns=["arm", "size", "seed", "axis", "log_saving", "is_limit"],
    )


def growth(found: pd.DataFrame) -> dict[tuple[str, str], Interval]:
    """Returns by arm and axis how the saving changes with each doubling of the size, in doublings, over seeds.

    The slope of a seed is that of least squares through all its sizes, so that only seeds with at least two sizes
    count. An interval above 0 says that the saving grows with size, over the sizes that were run.
    """
    slopes: dict[tuple[str, str], list[float]] = {}
    for (arm, axis, _), rows in found.groupby(["arm", "axis", "seed"], sort=False):
        if rows["size"].nunique() > 1:
            slope = np.polyfit(np.log(rows["size"].astype(float)), rows["log_saving"].astype(float), 1)[0]
            slopes.setdefault((str(arm), str(axis)), []).append(float(slope))
    return {pair: interval_of_mean(each) for pair, each in slopes.items()}


def _of_one_seed(runs: pd.DataFrame, size: str) -> Iterator[dict[str, Any]]:
    baseline_of = baselines(runs)
    for arm, ours in runs.groupby("arm", sort=False):
        dense = runs[runs["arm"] == baseline_of.get(str(arm))]
        if arm == baseline_of.get(str(arm)) or min(len(ours), len(dense)) < 2:
            continue
        for axis in AXES:
            found = _log_saving(_curve(ours, axis), _curve(dense, axis))
            about = {"arm": arm, "size": ours[size].iloc[0], "seed": ours["seed"].iloc[0], "axis": axis}
            if found is not None:
                yield about | dict(zip(("log_saving", "is_limit"), found, strict=True))


def _curve(runs: pd.DataFrame, axis: str) -> Curve:
    ends = runs.sort_values("images_seen")
    return Curve(ends[axis].astype(float).to_list(), ends["val_loss"].to_list())


def _log_saving(ours: Curve, dense: Curve) -> tuple[float, bool] | None:
    """Returns the log saving at the lowest loss that both reach, and whether it is only a limit of it; or None."""
    found = shift(ours, dense)
    if found is not None:
        return found.at_lowest, False
    if ours.loss[0] <= dense.loss[-1]:
        return math.log(dense.x[-1] / ours.x[0]), True
    if dense.loss[0] <= ours.loss[-1]:
        return math.log(dense.x[0] / ours.x[-1]), True
    return None
