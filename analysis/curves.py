"""Loss curves: per run against images, training FLOPs and seconds; mean over seeds; where a curve reaches a loss.

"Reaches" means reaches and stays: the last time the curve comes down through the loss, so that a dip by chance does not
count. The last time of a curve with noise is too late, as the first time is too early, the more so the noisier the
curve; so the noise is taken off first (`denoised`), from all curves in the same way. Between two evaluations the curve
is a straight line. A curve that ends above never reached it: None.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.load import Records

AXES = ("images_seen", "flops", "seconds")
HIDDEN_SHARE = 0.3
"""Share of training whose losses, many times the final ones, do not set the height of an axis."""
BEND = 3
"""The order of the differences that a denoised curve keeps small: a curve without any is a parabola."""
STRENGTHS = np.geomspace(1e-10, 1e10, 101)
"""How strongly they may be kept small, from a curve through every point to a parabola."""
QUIET = 1e-3
"""The standard deviation of ln L up to which noise is none."""


def validation_curves(records: Records, runs: pd.DataFrame) -> pd.DataFrame:
    """Columns `setting`, `arm`, `seed`, `run`, `images_seen`, `flops`, `seconds`, `loss`; raw weights.

    `seconds` are of training without evaluation, read off `steps` at the images of each evaluation.
    """
    evals = records.evals
    curves = evals[(evals["metric"] == "val_loss") & (evals["weights"] == "raw")].rename(columns={"value": "loss"})
    about_runs = runs[["run", "setting", "arm", "seed", "train_flops_per_image"]]
    curves = about_runs.merge(curves[["run", "images_seen", "loss"]], on="run", sort=False)
    curves = curves.sort_values(["run", "images_seen"], kind="stable")
    curves["flops"] = curves["images_seen"] * curves.pop("train_flops_per_image").astype(float)
    curves["seconds"] = _seconds_at(curves, records.steps)
    return curves.reset_index(drop=True)


def training_curves(records: Records, runs: pd.DataFrame) -> pd.DataFrame:
    """The same columns from the rows of `steps`."""
    about_runs = runs[["run", "setting", "arm", "seed"]]
    columns = ["run", "images_seen", "flops", "seconds", "loss"]
    return about_runs.merge(records.steps[columns], on="run", sort=False)


def mean_over_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """By `setting`, `arm` and `images_seen`: mean `flops`, `seconds` and `loss`, `loss_min`, `loss_max`, `num_seeds`.

    Only where every seed of the arm was measured, so that no seed comes or goes along a curve.
    """
    by = ["setting", "arm", "images_seen"]
    grouped = curves.groupby(by, sort=False, as_index=False).agg(
        flops=("flops", "mean"),
        seconds=("seconds", "mean"),
        loss=("loss", "mean"),
        loss_min=("loss", "min"),
        loss_max=("loss", "max"),
        num_seeds=("run", "nunique"),
    )
    most = curves.groupby(["setting", "arm"])["run"].nunique().rename("all_seeds").reset_index()
    complete = grouped.merge(most, on=["setting", "arm"]).query("num_seeds == all_seeds")
    return complete.drop(columns="all_seeds").sort_values(by, kind="stable").reset_index(drop=True)


def reach(x: Sequence[float], loss: Sequence[float], target: float) -> float | None:
    """Where the denoised curve (`x`, `loss`) comes down to `target` for the last time; None when it ends above it.

    A curve whose measured end is not above the target has reached it there at the latest.
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
    """[n] the losses of a curve without their noise: Whittaker's smoother of ln `loss` over ln `x`.

    Third divided differences are kept small, as strongly as generalized cross-validation finds right for the curve.
    Third and not second ones, because these would bend the end of a curve, where losses are compared. A curve that
    lies within `QUIET` of its smooth line has no noise to speak of and is left as it is, as are curves of fewer than
    five points, and of points that are not ascending or positive.
    """
    values, at = np.asarray(loss, dtype=float), np.asarray(x, dtype=float)
    if len(at) < BEND + 2 or at[0] <= 0 or (np.diff(at) <= 0).any() or not (np.isfinite(values) & (values > 0)).all():
        return values
    log_x = np.log(at / at[0]) / np.log(at[-1] / at[0])
    differences = np.eye(len(at))
    for order in range(1, BEND + 1):
        differences = np.diff(differences, axis=0) / (log_x[order:] - log_x[:-order])[:, np.newaxis]
    differences *= np.sqrt(log_x[BEND:] - log_x[:-BEND])[:, np.newaxis]
    _, singular, directions = np.linalg.svd(differences)
    penalty = STRENGTHS[:, np.newaxis] * np.append(singular**2, np.zeros(BEND))
    removed, along = penalty / (1 + penalty), directions @ np.log(values)
    best = removed[np.argmin(removed**2 @ along**2 / removed.sum(axis=1) ** 2)]
    noise = directions.T @ (best * along)
    return values if np.sqrt((noise**2).mean()) <= QUIET else np.asarray(values * np.exp(-noise))


def loss_limits(curves: pd.DataFrame) -> tuple[float, float]:
    """Limits of a loss axis for mean curves: from the lowest to the highest after the first `HIDDEN_SHARE`."""
    shown = curves[curves["images_seen"] >= HIDDEN_SHARE * curves["images_seen"].max()]
    low, high = float(shown["loss_min"].min()), float(shown["loss_max"].max())
    margin = 0.06 * (high - low) or 0.01 * low
    return low - margin, high + margin


def smooth(values: Sequence[float], num_values: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Centred running mean over `num_values`, over fewer at the ends."""
    series = pd.Series(values, dtype=float)
    return series.rolling(num_values, center=True, min_periods=1).mean().to_numpy()


def _seconds_at(curves: pd.DataFrame, steps: pd.DataFrame) -> pd.Series[float]:
    """Training seconds at `images_seen` of each row, along a straight line from 0 through the rows of `steps`."""
    of_run = dict(list(steps.groupby("run", sort=False)))
    seconds = pd.Series(np.nan, index=curves.index)
    for run, group in curves.groupby("run", sort=False):
        rows = of_run[run]
        images, spent = (np.append(0.0, rows[column].to_numpy()) for column in ("images_seen", "seconds"))
        seconds[group.index] = np.interp(group["images_seen"], images, spent)
    return seconds
