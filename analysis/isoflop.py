"""iso-FLOP profiles: at one budget of training FLOPs, which size has the lowest loss, and how that grows with compute.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2). Runs of one arm that spent the same FLOPs, within
`BUDGET_TOLERANCE`, form a profile: final validation loss, mean over seeds, against the logarithm of the parameters N.
Its minimum is found twice: of a parabola through all points (`quadratic`), and of Akima's interpolation, which follows
every point and assumes no shape (`akima`). A minimum at the edge of the sizes that were run is flagged and not used:
the best size may lie outside. D* is the number of images that the budget buys at N*.

N* and D* against the FLOPs C are power laws, fitted in `isoflop_laws.py`. The interval of a parabola's minimum is over
configurations, from how far these lie from the parabolas of their arm (`isoflop_scatter.py`). Akima's interpolation
passes through all of them, so it cannot tell, and its minima have no interval. Sizes differ in width or preset
(`model.*`), in what goes with the size, and in the images they see; runs of one size that differ in anything else are
profiles of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from analysis.arms import ARM_SETTINGS, arm_list, with_arms
from analysis.isoflop_laws import laws_of_minima
from analysis.isoflop_scatter import Profile, Scatter, half_width, scatter
from analysis.load import WITHOUT_EFFECT, MissingDataError
from analysis.style import scaled

LOOK = ("routing.name", "variant")
"""What an arm is drawn by."""
BUDGET_TOLERANCE = 0.05
"""Relative difference in training FLOPs up to which runs have spent the same: whole batches are never exact."""
MIN_SIZES = 3
WAY_OUT = "Run one with: ecdit sweep isoflop"

NO_INTERVAL = (
    "no interval of a minimum: 3 sizes a budget leave nothing to tell how far configurations are off a parabola."
)
LOG_LIMITS = (-300.0, 300.0)
"""Of the ends of an interval: where the bend of a parabola is nearly 0, they would overflow."""
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
    `images_low`, `images_high`, `num_seeds`; a row a profile and method. Inner minima of parabolas alone
    have an interval.
    `laws`: `study`, `arm`, `method`, `quantity` (params or images), `factor`, `exponent`, `exponent_low`,
    `exponent_high`, `num_budgets`: quantity = factor C^exponent. A law that falls is refused.
    """

    profiles: pd.DataFrame
    minima: pd.DataFrame
    laws: pd.DataFrame
    refused: tuple[str, ...]


class _FlopBudget(NamedTuple):
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
    rows: list[dict[str, object]] = []
    for (study, arm), group in groupby(usable, key=lambda budget: (budget.study, budget.arm)):
        budgets = list(group)
        spread = scatter([_profile(budget, size) for budget in budgets])
        refused += [] if spread else [f"{_arm_name(study, arm)}: {NO_INTERVAL}"]
        rows += [row for budget in budgets for row in _minimum_rows(budget, size, spread)]
    minima = pd.DataFrame(rows).astype(dict.fromkeys(MINIMUM_ENDS, "float64"))
    refused += _edges(minima[minima["is_edge"]])
    profiles = pd.concat([_profile_rows(budget, size) for budget in usable], ignore_index=True)
    laws, falling = laws_of_minima(minima)
    return IsoFlop(profiles, minima, laws, (*refused, *falling))


def flops_text(flops: float) -> str:
    """A budget as `2 TFLOP`: whole batches miss it by less than the second digit."""
    budget = float(f"{flops:.2g}")
    factor, unit = scaled(budget, "FLOP")
    return f"{budget / factor:g} {unit}"


def _arm_name(study: str, arm: str) -> str:
    return f"{arm}{f' ({study})' if study else ''}"


def _name(study: str, arm: str, flops: float) -> str:
    return f"{_arm_name(study, arm)} at {flops_text(flops)}"


def _edges(minima: pd.DataFrame) -> list[str]:
    """Returns a line for each of `minima`, which lie at an edge."""
    rows = minima[["study", "arm", "flops", "method"]].itertuples(index=False, name=None)
    what = "minimum lies at the edge of the sizes and is not used."
    return [f"{_name(study, arm, flops)}: the {method} {what}" for study, arm, flops, method in rows]


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


METHODS: dict[str, Callable[[Sequence[float], Sequence[float]], Lowest]] = {
    "quadratic": quadratic_minimum,
    "akima": akima_minimum,
}


def _budgets(table: pd.DataFrame, size: str) -> Iterator[_FlopBudget]:
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
                yield _FlopBudget(str(study), arm, flops, of_budget.sort_values(size, kind="stable"))


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


def _usable(budgets: Sequence[_FlopBudget], size: str) -> tuple[list[_FlopBudget], list[str]]:
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


def _profile_rows(budget: _FlopBudget, size: str) -> pd.DataFrame:
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


def _minimum_rows(budget: _FlopBudget, size: str, spread: Scatter | None) -> Iterator[dict[str, object]]:
    """Returns the minima of one budget by both methods; the images and their interval follow from the parameters."""
    profile = _profile(budget, size)
    log_images = np.log(budget.runs.groupby(size)["images_seen"].mean().to_numpy(dtype=float))
    images_slope, _ = np.polyfit(profile.log_params, log_images, 1)
    for method, find in METHODS.items():
        found = find(*profile)
        is_known = method == "quadratic" and not found.is_edge
        half = half_width(profile, spread) if spread and is_known else None
        row: dict[str, object] = {"study": budget.study, "arm": budget.arm, "flops": budget.flops, "method": method}
        row |= {"loss": found.loss, "is_edge": found.is_edge, "num_seeds": budget.runs["seed"].nunique()}
        row |= _around("params", found.log_params, half)
        at_minimum = float(np.interp(found.log_params, profile.log_params, log_images))
        yield row | _around("images", at_minimum, half and half * abs(float(images_slope)))


def _around(name: str, log_value: float, half: float | None) -> dict[str, float | None]:
    """Returns a value and the ends of its interval, which are none where `half` of its logarithm's is not known."""
    ends = (None, None) if half is None else np.exp(np.clip([log_value - half, log_value + half], *LOG_LIMITS)).tolist()
    return {name: math.exp(log_value), f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _profile(budget: _FlopBudget, size: str) -> Profile:
    means = budget.runs.groupby(size)["val_loss"].mean()
    return Profile(np.log(means.index.to_numpy(dtype=float)).tolist(), means.to_list())
