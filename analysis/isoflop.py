"""iso-FLOP profiles: at one budget of training FLOPs, which size has the lowest loss, and how that grows with compute.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2). Runs of one arm that spent the same FLOPs, within
`BUDGET_TOLERANCE`, form a profile: final validation loss, mean over seeds, against the logarithm of the parameters N.
Its minimum is found twice: of a parabola through all points (`quadratic`), and of Akima's interpolation, which follows
every point and assumes no shape (`akima`). A minimum at the edge of the sizes that were run is flagged and not used:
the best size may lie outside. D* is the number of images that the budget buys at N*.

N* and D* against the FLOPs C are power laws, fitted in `isoflop_laws.py`. The interval of a single minimum is over
seeds: each seed gives a minimum of its own, and Student's t their spread. Seeds of one configuration share its error,
so that this interval says how well the minimum repeats, and not how far it lies from the best size. Sizes differ in
width or preset (`model.*`), in what goes with the size, and in the images they see; runs of one size that differ in
anything else are profiles of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from analysis.arms import ARM_SETTINGS, arm_list, with_arms
from analysis.intervals import interval_of_mean
from analysis.isoflop_laws import laws_of_minima
from analysis.load import WITHOUT_EFFECT, MissingDataError
from analysis.style import scaled

Method = Literal["quadratic", "akima"]
METHODS: tuple[Method, ...] = ("quadratic", "akima")

LOOK = ("routing.name", "variant")
"""What an arm is drawn by."""
BUDGET_TOLERANCE = 0.05
"""Relative difference in training FLOPs up to which runs have spent the same: whole batches are never exact."""
MIN_SIZES = 3
WAY_OUT = "Run one with: ecdit sweep isoflop"

MINIMUM_ENDS = ("params_low", "params_high", "images_low", "images_high")

Floats = NDArray[np.float64]


class Lowest(NamedTuple):
    """The minimum of one curve: where it is (log parameters), its loss, and whether it lies at the edge."""

    log_params: float
    loss: float
    is_edge: bool


@dataclass(frozen=True)
class IsoFlop:
    """Profiles, their minima, the laws through these, and a line for everything that could not be used.

    `profiles`: `study`, `arm`, `flops`, `LOOK`, `params`, `images`, `loss`, `loss_min`, `loss_max`, `num_seeds`; a row
    a size.
    `minima`: `study`, `arm`, `flops`, `method`, `params`, `images`, `loss`, `is_edge`, `params_low`, `params_high`,
    `images_low`, `images_high`, `num_seeds`; a row a profile and method. An edge minimum has no interval.
    `laws`: `study`, `arm`, `method`, `quantity` (params or images), `factor`, `exponent`, `exponent_low`,
    `exponent_high`, `num_budgets`: quantity = factor C^exponent. A law that falls is refused.
    """

    profiles: pd.DataFrame
    minima: pd.DataFrame
    laws: pd.DataFrame
    refused: tuple[str, ...]


class _Budget(NamedTuple):
    """The runs of one arm that spent the same; `flops` is their geometric mean."""

    study: str
    arm: str
    flops: float
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        """As a line for a person begins."""
        return _name(self.study, self.arm, self.flops)


def isoflop(table: pd.DataFrame, size: str = "params_active") -> IsoFlop:
    """The analysis of a run table, N counted in its column `size`.

    A `MissingDataError` where no budget has `MIN_SIZES` sizes.
    """
    usable, refused = _usable(list(_budgets(table, size)), size)
    minima = pd.DataFrame([row for budget in usable for row in _minimum_rows(budget, size)])
    minima = minima.astype(dict.fromkeys(MINIMUM_ENDS, "float64"))
    refused += _said(minima[minima["is_edge"]], "the {} minimum lies at the edge of the sizes and is not used.")
    without = (minima["num_seeds"] > 1) & ~minima["is_edge"] & minima["params_low"].isna()
    refused += _said(minima[without], "no interval: not every seed ran every size and has a {} minimum inside.")
    profiles = pd.concat([_profile_rows(budget, size) for budget in usable], ignore_index=True)
    laws, falling = laws_of_minima(minima)
    return IsoFlop(profiles, minima, laws, (*refused, *falling))


def flops_text(flops: float) -> str:
    """A budget as `2 TFLOP`: whole batches miss it by less than the second digit."""
    budget = float(f"{flops:.2g}")
    factor, unit = scaled(budget, "FLOP")
    return f"{budget / factor:g} {unit}"


def _name(study: str, arm: str, flops: float) -> str:
    return f"{arm}{f' ({study})' if study else ''} at {flops_text(flops)}"


def _said(minima: pd.DataFrame, sentence: str) -> list[str]:
    """One line for each of `minima`, whose method goes into `sentence`."""
    rows = minima[["study", "arm", "flops", "method"]].itertuples(index=False, name=None)
    return [f"{_name(study, arm, flops)}: {sentence.format(method)}" for study, arm, flops, method in rows]


def quadratic_minimum(log_params: Sequence[float], loss: Sequence[float]) -> Lowest:
    """Of the parabola of least squares through at least 3 sizes; an edge where it opens downwards or ends first."""
    curve = np.polynomial.Polynomial.fit(log_params, loss, 2)
    ends = float(min(log_params)), float(max(log_params))
    bend = float(curve.deriv(2)(ends[0]))
    if bend > 0:
        bottom = float(np.real(curve.deriv().roots()[0]))
        if ends[0] < bottom < ends[1]:
            return Lowest(bottom, float(curve(bottom)), False)
    lowest = min(ends, key=lambda end: float(curve(end)))
    return Lowest(lowest, float(curve(lowest)), True)


def akima_minimum(log_params: Sequence[float], loss: Sequence[float]) -> Lowest:
    """Of Akima's piecewise cubic through ascending sizes; an edge where the first or last size is lowest."""
    curve = Akima1DInterpolator(log_params, loss)
    flat: Floats = np.asarray(curve.derivative().roots(extrapolate=False), dtype=float)
    candidates = [*log_params, *flat[np.isfinite(flat)]]
    lowest = min(candidates, key=lambda at: float(curve(at)))
    return Lowest(float(lowest), float(curve(lowest)), lowest in (log_params[0], log_params[-1]))


def _budgets(table: pd.DataFrame, size: str) -> Iterator[_Budget]:
    """The runs of each arm by what they spent. The images of a run follow from its budget, so they make no setting."""
    unnamed = table.copy()
    unnamed["train.images"] = 0
    named = with_arms(unnamed)
    spent = named["images_seen"] * named["train_flops_per_image"].astype(float)
    studied = named.assign(study=_studies(named)).assign(train_flops=spent)
    for study, runs in studied.groupby("study", sort=False):
        for arm, _, _ in arm_list(runs):
            ours = runs[runs["arm"] == arm].sort_values(["train_flops", size], kind="stable")
            for of_budget in _spent_alike(ours):
                flops = math.exp(float(np.log(of_budget["train_flops"]).mean()))
                yield _Budget(str(study), arm, flops, of_budget.sort_values(size, kind="stable"))


def _studies(table: pd.DataFrame) -> list[str]:
    """What besides size, images and seed differs between runs, as a text; empty where nothing does.

    What differs between sizes alone (a learning rate that goes with the size) belongs to the size.
    """
    free = (*ARM_SETTINGS, *WITHOUT_EFFECT, "model.", "train.images")
    held = [name for name in table.columns if "." in name and not name.startswith(free)]
    sizes = table[[name for name in table.columns if name.startswith("model.")]].astype(str).agg(" ".join, axis=1)
    varying = [name for name in held if (table[name].map(str).groupby(sizes).nunique() > 1).any()]
    return [", ".join(f"{name}={row[name]}" for name in varying) for _, row in table.iterrows()]


def _spent_alike(runs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """`runs`, ascending in FLOPs, cut where one spent more than the first of its group by the tolerance."""
    firsts: list[float] = []
    of_run = []
    for flops in runs["train_flops"]:
        if not firsts or flops > firsts[-1] * (1 + BUDGET_TOLERANCE):
            firsts.append(flops)
        of_run.append(firsts[-1])
    for _, of_budget in runs.groupby(np.asarray(of_run)):
        yield of_budget


def _usable(budgets: Sequence[_Budget], size: str) -> tuple[list[_Budget], list[str]]:
    """Budgets with enough sizes, and a line for every other one."""
    sizes = [budget.runs[size].nunique() for budget in budgets]
    usable = [budget for budget, number in zip(budgets, sizes, strict=True) if number >= MIN_SIZES]
    refused = [
        f"{budget.name} has {number} size{'s' * (number > 1)}; a minimum needs {MIN_SIZES}."
        for budget, number in zip(budgets, sizes, strict=True)
        if number < MIN_SIZES
    ]
    if not usable:
        raise MissingDataError(
            f"No budget of training FLOPs has {MIN_SIZES} sizes of one arm ({refused[0].rstrip('.')}).", WAY_OUT
        )
    return usable, refused


def _profile_rows(budget: _Budget, size: str) -> pd.DataFrame:
    rows = budget.runs.groupby(size, as_index=False).agg(
        images=("images_seen", "mean"),
        loss=("val_loss", "mean"),
        loss_min=("val_loss", "min"),
        loss_max=("val_loss", "max"),
        num_seeds=("seed", "nunique"),
    )
    about: dict[str, Any] = {"study": budget.study, "arm": budget.arm, "flops": budget.flops}
    about |= {name: budget.runs[name].iloc[0] for name in LOOK}
    rows = rows.rename(columns={size: "params"})
    return rows.assign(**about)[[*about, *rows.columns]]


def _minimum_rows(budget: _Budget, size: str) -> Iterator[dict[str, object]]:
    for method in METHODS:
        found = _lowest(budget.runs, size, method)
        by_seed = _by_seed(budget, size, method)
        params, images = math.exp(found.log_params), math.exp(_log_images(budget.runs, size, found.log_params))
        row: dict[str, object] = {"study": budget.study, "arm": budget.arm, "flops": budget.flops, "method": method}
        row |= {"params": params, "images": images, "loss": found.loss, "is_edge": found.is_edge}
        usable = {} if found.is_edge else by_seed
        row |= _around("params", params, [log_params for log_params, _ in usable.values()])
        row |= _around("images", images, [log_images for _, log_images in usable.values()])
        yield row | {"num_seeds": budget.runs["seed"].nunique()}


def _around(name: str, value: float, logs: Sequence[float]) -> dict[str, float | None]:
    """The interval of `value`: as wide as the mean of the seeds' logarithms is uncertain."""
    over_seeds = interval_of_mean(logs) if len(logs) > 1 else None
    if over_seeds is None or over_seeds.high is None:
        return {f"{name}_low": None, f"{name}_high": None}
    half = over_seeds.high - over_seeds.mean
    return {f"{name}_low": value * math.exp(-half), f"{name}_high": value * math.exp(half)}


def _lowest(runs: pd.DataFrame, size: str, method: Method) -> Lowest:
    means = runs.groupby(size)["val_loss"].mean()
    log_params = np.log(means.index.to_numpy(dtype=float)).tolist()
    find = quadratic_minimum if method == "quadratic" else akima_minimum
    return find(log_params, means.to_list())


def _by_seed(budget: _Budget, size: str, method: Method) -> dict[int, tuple[float, float]]:
    """(log N*, log D*) by seed; empty unless every seed ran every size and has a minimum inside."""
    minima: dict[int, tuple[float, float]] = {}
    for _, runs in budget.runs.groupby("seed"):
        found = _lowest(runs, size, method) if runs[size].nunique() == budget.runs[size].nunique() else None
        if found is None or found.is_edge:
            return {}
        minima[int(runs["seed"].iloc[0])] = found.log_params, _log_images(budget.runs, size, found.log_params)
    return minima


def _log_images(runs: pd.DataFrame, size: str, log_params: float) -> float:
    """What the budget buys at a size between those that were run, along a straight line in logarithms."""
    images = runs.groupby(size)["images_seen"].mean()
    return float(np.interp(log_params, np.log(images.index.to_numpy(dtype=float)), np.log(images.to_numpy(float))))
