"""Compute multipliers: by which factor one routing needs less compute, data or time to the loss of another.

The validation curves of two arms of one setup are compared against training FLOPs (of activated weights), images and
seconds. Over the range of losses that both reach, the horizontal distance between the curves, in logarithms, is
averaged uniformly over the losses; its exponential is the multiplier. Above 1 the arm needs less than the reference;
exchanging the two gives the inverse. `at_lowest` is the distance at the lowest loss that both reach, where the curves
are flat and a small gain in loss costs much compute.

A curve reaches a loss when it falls below it for the last time, as in `curves.py`. Curves are denoised first, because
noise delays the last crossing and so would put the noisier curve at a disadvantage. Between evaluations a curve is
interpolated linearly in the logarithm of the axis. Runs are paired by seed, and intervals are Student's t over the
logarithms of the pairs. Seconds that were measured on different machines are refused. With a schedule that decays the
learning rate, an intermediate point of one run is compared with the decayed end of another, which biases a multiplier
towards 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.baselines import narrowed
from analysis.claims import arm_pairs, corrections, holds
from analysis.comparable import MEASURED_ON, first_difference
from analysis.curves import AXES, denoised, validation_curves
from analysis.load_records import MissingDataError, Records
from analysis.seed_intervals import Interval, interval_of_mean
from analysis.shared_trunks import TRUNK, trunks

NUM_LOSSES = 200
"""The number of losses at which the distance between two curves is evaluated, for the mean over the losses."""

Floats = NDArray[np.float64]
CurvesOf = Callable[[str, str], dict[int, "Curve"]]
"""Returns the smooth curves of an arm over an axis by seed."""


class Curve(NamedTuple):
    """The validation curve of one run in the order of training; `x` (FLOPs, images or seconds) is positive."""

    x: Sequence[float]
    loss: Sequence[float]


class Shift(NamedTuple):
    """The log multiplier of two runs: its mean over losses from `loss_low` to `loss_high`, and at the lowest."""

    mean: float
    at_lowest: float
    loss_low: float
    loss_high: float


@dataclass(frozen=True)
class Multiplier:
    """The factor by which `arm` needs less of `axis` (one of `AXES`) than `reference`, with its interval over seeds.

    `refusal` says why there is none; the factors and the range of losses are then None. Setups whose arm is of one
    `trunk` are not independent of each other.
    """

    setup: str
    arm: str
    reference: str
    axis: str
    factor: Interval | None
    at_lowest: Interval | None
    loss_low: float | None
    loss_high: float | None
    refusal: str | None = None
    trunk: str | None = None


def multipliers(records: Records, table: pd.DataFrame) -> list[Multiplier]:
    """Returns the multipliers of every pair of arms that `claims.py` compares, on each of `AXES`.

    Raises `MissingDataError` where no setup has two arms to compare.
    """
    curves = validation_curves(records, table)
    of_setup = dict(list(curves.groupby("setup", sort=False)))
    found = []
    for setup, runs in narrowed(table, "run", *MEASURED_ON, TRUNK).groupby("setup", sort=False):
        curves_of = _smooth_curves(of_setup.get(setup, curves.iloc[:0]))
        differing = [name for name in MEASURED_ON if first_difference(name, runs[name], runs["run"])]
        for arm, reference in arm_pairs(runs):
            trunk = trunks(runs[runs["arm"] == arm])[0]
            for axis in AXES:
                differs = _machines_differ(runs, differing, arm, reference) if axis == "seconds" else None
                found.append(
                    Multiplier(str(setup), arm, reference, axis, None, None, None, None, differs)
                    if differs
                    else replace(_multiplier(str(setup), arm, reference, axis, curves_of), trunk=trunk)
                )
    if not found:
        raise MissingDataError("No setup has two routings to compare.", "Run some with: ecdit sweep routing_comparison")
    return found


def shift(ours: Curve, theirs: Curve) -> Shift | None:
    """Returns the log distance between two curves over the losses that both reach, or None where there are none."""
    return _shift(_smooth(ours), _smooth(theirs))


def _shift(ours: Curve, theirs: Curve) -> Shift | None:
    high, low = min(max(ours.loss), max(theirs.loss)), max(ours.loss[-1], theirs.loss[-1])
    if low >= high:
        return None
    # Losses ascend, so the first distance is the one at the lowest loss that both curves reach.
    losses = np.linspace(low, high, NUM_LOSSES)
    distances = _log_x_at(losses, theirs) - _log_x_at(losses, ours)
    mean = float(np.trapezoid(distances, losses)) / (high - low)
    return Shift(mean, float(distances[0]), low, high)


def multiplier_rows(found: Sequence[Multiplier]) -> pd.DataFrame:
    """Returns one row for each: `factor` and `at_lowest` with `_low` and `_high`, losses, `num_seeds`, `refusal`.

    `p` tests that the factor is 1; `p_bh` and `p_holm` are corrected for the number of multipliers that were tested.
    """
    pairs = corrections(_p_values(found))
    rows = [dict(_row(each)) for each in found]
    for row, p_value, pair in zip(rows, _p_values(found), pairs, strict=True):
        row["p"], (row["p_bh"], row["p_holm"]) = p_value, pair or (None, None)
    return pd.DataFrame(rows).astype(dict.fromkeys(("p", "p_bh", "p_holm"), "float64"))


def multiplier_correction(found: Sequence[Multiplier]) -> str:
    """Says how many multipliers differ from 1 before and after each correction; empty where none was tested."""
    tested = [
        (p_value, pair) for p_value, pair in zip(_p_values(found), corrections(_p_values(found)), strict=True) if pair
    ]
    if not tested:
        return ""
    before = sum(holds(p_value) for p_value, _ in tested)
    after, strict = (sum(holds(pair[i]) for _, pair in tested) for i in (0, 1))
    return (
        f"Of {len(tested)} multipliers tested, {before} differ from 1 before correction, {after} after Benjamini and "
        f"Hochberg's and {strict} after Holm's."
    )


def over_setups(found: Sequence[Multiplier]) -> pd.DataFrame:
    """Returns the mean of each multiplier over setups: `arm`, `reference`, `axis`, `factor`, ..., `num_setups`.

    The unit over which a claim about several sizes generalises is a setup, so the interval is Student's t over the
    logarithms of the setups' means; the seeds of one setup share what it deviates. Setups of one trunk share it too:
    their mean counts, and they are one in `num_setups`. Only pairs of arms with several setups have a row.
    """
    known: dict[tuple[str, str, str], list[Multiplier]] = {}
    for each in found:
        if each.factor is not None:
            known.setdefault((each.arm, each.reference, each.axis), []).append(each)
    rows = []
    for pair, of_setups in known.items():
        at = geometric_mean(_logs_by_unit(of_setups))
        if at.low is not None:
            about = dict(zip(("arm", "reference", "axis"), pair, strict=True))
            rows.append({**about, "factor": at.mean, "factor_low": at.low, "factor_high": at.high,
                         "num_setups": at.num_values})  # fmt: skip
    return pd.DataFrame(rows)


def _logs_by_unit(found: Iterable[Multiplier]) -> list[float]:
    """Returns the mean logarithm of the factors of each trunk, and that of each setup without one."""
    units: dict[str, list[float]] = {}
    for each in found:
        if each.factor is not None:
            units.setdefault(each.trunk or each.setup, []).append(math.log(each.factor.mean))
    return [fmean(logs) for logs in units.values()]


def _p_values(found: Sequence[Multiplier]) -> list[float | None]:
    return [None if each.factor is None else each.factor.p_value for each in found]


def _multiplier(setup: str, arm: str, reference: str, axis: str, curves_of: CurvesOf) -> Multiplier:
    ours, theirs = curves_of(arm, axis), curves_of(reference, axis)
    seeds = [seed for seed in ours if seed in theirs]
    shifts = {seed: _shift(ours[seed], theirs[seed]) for seed in seeds}
    known = [each for each in shifts.values() if each is not None]
    if not seeds or len(known) < len(seeds):
        refusal = _refusal(arm, reference, [seed for seed in seeds if shifts[seed] is None])
        return Multiplier(setup, arm, reference, axis, None, None, None, None, refusal)
    factor, at_lowest = ([getattr(each, name) for each in known] for name in ("mean", "at_lowest"))
    low, high = max(each.loss_low for each in known), min(each.loss_high for each in known)
    return Multiplier(setup, arm, reference, axis, geometric_mean(factor), geometric_mean(at_lowest), low, high)


def _machines_differ(runs: pd.DataFrame, differing: Sequence[str], arm: str, reference: str) -> str | None:
    """Returns why the seconds of two arms are not comparable, or None if they were measured on equal machines.

    `differing` are those of `MEASURED_ON` in which any of `runs` differ.
    """
    ours = runs[runs["arm"].isin([arm, reference])]
    found = (first_difference(name, ours[name], ours["run"]) for name in differing)
    difference = next(filter(None, found), None)
    return difference and f"{difference} Their seconds are not comparable."


def geometric_mean(logs: Sequence[float]) -> Interval:
    """Returns the geometric mean and its interval of numbers given by logarithms; `p_value` tests that it is 1."""
    at = interval_of_mean(logs)
    low, high = (None if end is None else math.exp(end) for end in (at.low, at.high))
    return Interval(math.exp(at.mean), low, high, at.num_values, "paired", at.p_value)


def _refusal(arm: str, reference: str, without: Sequence[int]) -> str:
    if not without:
        return f"{arm} and {reference} have no seed in common."
    seeds = f"seed{'s' * (len(without) > 1)} {', '.join(map(str, without))}"
    return f"The curves of {arm} and {reference} reach no loss in common ({seeds})."


def _smooth_curves(curves: pd.DataFrame) -> CurvesOf:
    """Returns the smooth curves of one setup by arm and axis; each is made once, although several pairs have it."""
    by_arm: dict[str, dict[int, pd.DataFrame]] = {}
    for (arm, _), run in curves.groupby(["arm", "seed"]):
        by_arm.setdefault(str(arm), {})[int(run["seed"].iloc[0])] = run

    @cache
    def of(arm: str, axis: str) -> dict[int, Curve]:
        runs = {seed: run[run[axis] > 0] for seed, run in by_arm.get(arm, {}).items()}
        kept = {seed: run for seed, run in runs.items() if len(run)}
        return {seed: _smooth(Curve(run[axis].to_list(), run["loss"].to_list())) for seed, run in kept.items()}

    return of


def _smooth(curve: Curve) -> Curve:
    return Curve(curve.x, denoised(*curve).tolist())


def _log_x_at(losses: Floats, curve: Curve) -> Floats:
    """Returns the log of `x` where the curve falls to each loss for the last time (`curves.reach`, vectorised)."""
    log_x, loss = np.log(np.asarray(curve.x, dtype=float)), np.asarray(curve.loss, dtype=float)
    # A loss that the curve never exceeds is reached at its first point. The curve ends at or below every loss here, so
    # the last point above one always has a successor.
    above = loss > losses[:, np.newaxis]
    found = np.full(len(losses), log_x[0])
    ever = above.any(axis=1)
    last = len(loss) - 1 - np.argmax(above[ever, ::-1], axis=1)
    share = (loss[last] - losses[ever]) / (loss[last] - loss[last + 1])
    found[ever] = log_x[last] + share * (log_x[last + 1] - log_x[last])
    return found


def _row(each: Multiplier) -> Iterator[tuple[str, object]]:
    yield from ((name, getattr(each, name)) for name in ("setup", "arm", "reference", "axis"))
    for name in ("factor", "at_lowest"):
        at: Interval | None = getattr(each, name)
        yield name, None if at is None else at.mean
        yield f"{name}_low", None if at is None else at.low
        yield f"{name}_high", None if at is None else at.high
    yield from (("loss_low", each.loss_low), ("loss_high", each.loss_high))
    yield "num_seeds", 0 if each.factor is None else each.factor.num_values
    yield "refusal", each.refusal
