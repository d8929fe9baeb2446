"""Loss curves of runs and their means over seeds, and the point at which a curve reaches a given loss.

A curve reaches a loss where it comes down through it for the last time, so that a dip by chance does not count. On a
noisy curve the last crossing is too late and the first one too early, and the error grows with the noise. The noise is
therefore removed first (`denoised`), from all curves in the same way. Between two evaluations the curve is taken as a
straight line. A curve that ends above the loss has not reached it, and the answer is None.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.executed_flops import after_parents, flops_at, interpolated
from analysis.load_records import Records, rows_of

AXES = ("images_seen", "flops", "seconds")
HIDDEN_SHARE = 0.3
"""The first part of training, as a share. Its losses are many times the final ones and do not set an axis' height."""
BEND = 3
"""The order of the differences that the smoother penalizes: a curve whose third differences are 0 is a parabola."""
STRENGTHS = np.geomspace(1e-10, 1e10, 101)
"""Strengths of the penalty that are tried, from a curve through every point to a parabola."""
QUIET = 1e-3
"""Noise whose standard deviation in ln L is at most this is not removed."""


def validation_curves(records: Records, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns `setup`, `arm`, `seed`, `run`, `images_seen`, `flops`, `seconds` and `loss` of the raw weights.

    Images and FLOPs include those on which the first weights were trained (`executed_flops.py`). `seconds` count the
    training of the run itself without evaluation. They are interpolated in `steps` at the images of each evaluation,
    and missing where a run took no steps, because it was merged from others.
    """
    evals = records.evals
    curves = evals[(evals["metric"] == "val_loss") & (evals["weights"] == "raw")].rename(columns={"value": "loss"})
    about_runs = runs[["run", "setup", "arm", "seed"]]
    curves = about_runs.merge(curves[["run", "images_seen", "loss"]], on="run", sort=False)
    curves = curves.sort_values(["run", "images_seen"], kind="stable")
    curves["flops"] = flops_at(curves, runs, records.steps)
    curves["seconds"] = interpolated(curves, records.steps, "seconds", pd.Series(0.0, index=curves.index))
    return after_parents(curves, runs).reset_index(drop=True)


def training_curves(records: Records, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the columns of `validation_curves` with training losses, from the rows of `steps`."""
    about_runs = runs[["run", "setup", "arm", "seed"]]
    columns = ["run", "images_seen", "flops", "seconds", "loss"]
    steps = rows_of(runs, records.steps[columns])
    return after_parents(about_runs.merge(steps, on="run", sort=False), runs)


def mean_over_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """Returns mean `flops`, `seconds`, `loss`, and `loss_min`, `loss_max`, `num_seeds`, for each arm and `images_seen`.

    A point is kept only where every seed of the arm was measured: a seed that joins or leaves a mean curve would put a
    step into it.
    """
    by = ["setup", "arm", "images_seen"]
    grouped = curves.groupby(by, sort=False, as_index=False).agg(
        flops=("flops", "mean"),
        seconds=("seconds", "mean"),
        loss=("loss", "mean"),
        loss_min=("loss", "min"),
        loss_max=("loss", "max"),
        num_seeds=("run", "nunique"),
    )
    most = curves.groupby(["setup", "arm"])["run"].nunique().rename("all_seeds").reset_index()
    complete = grouped.merge(most, on=["setup", "arm"]).query("num_seeds == all_seeds")
    return complete.drop(columns="all_seeds").sort_values(by, kind="stable").reset_index(drop=True)


def reach(x: Sequence[float], loss: Sequence[float], target: float) -> float | None:
    """Returns the x at which the denoised curve falls to `target` for the last time, or None when it ends above it.

    A curve whose last measured loss is not above the target has reached it at its end, even if the denoised curve
    has not.
    """
    curve = denoised(x, loss)
    above = np.flatnonzero(curve > target)
    if len(above) == 0:
        return float(x[0])
    last = int(above[-1])
    if last == len(curve) - 1:
        return None if loss[last] > target else float(x[last])
    share = (curve[last] - target) / (curve[last] - curve[last + 1])
    return float(x[last] + share * (x[last + 1] - x[last]))


def denoised(x: ArrayLike, loss: ArrayLike) -> NDArray[np.float64]:
    """Removes the noise from the losses [n] of a curve by Whittaker's smoother of ln `loss` over ln `x`.

    The smoother penalizes third divided differences, and generalized cross-validation chooses the strength of the
    penalty for each curve. Second differences would pull the end of a curve, where losses are compared, to a straight
    line. A curve that lies within `QUIET` of its smooth line is returned unchanged. So are curves of fewer than five
    points and curves whose points are not ascending and positive.
    """
    values, at = np.asarray(loss, dtype=float), np.asarray(x, dtype=float)
    if len(at) < BEND + 2 or at[0] <= 0 or (np.diff(at) <= 0).any() or not (np.isfinite(values) & (values > 0)).all():
        return values
    log_x = np.log(at / at[0]) / np.log(at[-1] / at[0])
    differences = np.eye(len(at))
    for order in range(1, BEND + 1):
        differences = np.diff(differences, axis=0) / (log_x[order:] - log_x[:-order])[:, np.newaxis]
    differences *= np.sqrt(log_x[BEND:] - log_x[:-BEND])[:, np.newaxis]
    # In the singular vectors of the difference matrix the smoother is diagonal: it removes p / (1 + p) of a component.
    # Generalized cross-validation is then a sum over components, and no system is solved for each strength.
    _, singular, directions = np.linalg.svd(differences)
    penalty = STRENGTHS[:, np.newaxis] * np.append(singular**2, np.zeros(BEND))
    removed, along = penalty / (1 + penalty), directions @ np.log(values)
    best = removed[np.argmin(removed**2 @ along**2 / removed.sum(axis=1) ** 2)]
    noise = directions.T @ (best * along)
    return values if np.sqrt((noise**2).mean()) <= QUIET else np.asarray(values * np.exp(-noise))


def loss_limits(curves: pd.DataFrame) -> tuple[float, float]:
    """Returns the limits of a loss axis: the lowest and highest of the mean curves after the first `HIDDEN_SHARE`."""
    shown = curves[curves["images_seen"] >= HIDDEN_SHARE * curves["images_seen"].max()]
    low, high = float(shown["loss_min"].min()), float(shown["loss_max"].max())
    margin = 0.06 * (high - low) or 0.01 * low
    return low - margin, high + margin


def smooth(values: Sequence[float], num_values: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Returns the centred running mean over `num_values`, and over fewer values at the ends."""
    series = pd.Series(values, dtype=float)
    return series.rolling(num_values, center=True, min_periods=1).mean().to_numpy()
