"""Iso-FLOP profiles show which model size has the lowest loss at a budget of training FLOPs, and how that size grows.

This is approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2). Runs of one arm that spent the same FLOPs,
within `BUDGET_TOLERANCE`, form a profile: the final validation loss, a mean over seeds, against the logarithm of the
parameters N. Its minimum N* is found in three ways: as that of a parabola fitted to all points (`quadratic`), as that
of Akima's interpolation, which follows every point and assumes no shape (`akima`), and by one law for all budgets of
the arm (`parametric`, `isoflop_parametric.py`). How far they disagree is a number beside the best size. A minimum at
the edge of the sizes that were run is flagged and not used, because the best size may lie outside. D* is the number of
images that the budget buys at N*.

N* and D* are power laws in the FLOPs C, fitted in `isoflop_laws.py`. The interval of a parabola's minimum comes from
how far configurations lie from the parabolas of their arm (`isoflop_scatter.py`). Akima's interpolation passes through
all points and leaves no residuals, so its minima have no interval. Sizes differ in width or preset (`model.*`), in the
settings that go with the size, and in the images they see. Runs of one size that differ in any other setting belong to
separate profiles.
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

from analysis.arms import ARM_SETTINGS, arm_list, setting_text, with_arms
from analysis.executed_flops import train_flops, with_images_before
from analysis.found_runs import WITHOUT_EFFECT
from analysis.isoflop_laws import laws_of_minima
from analysis.isoflop_parametric import SizesOfBudget, disagreements, parametric_or_refusal
from analysis.isoflop_scatter import Profile, Scatter, half_width, scatter
from analysis.load_records import MissingDataError
from analysis.shared_trunks import share_trunks
from analysis.style import scaled

LOOK = ("routing.name", "variant")
"""The columns that determine how an arm is drawn."""
BUDGET_TOLERANCE = 0.05
"""Runs whose training FLOPs differ relatively by at most this form one budget, which whole batches meet roughly."""
MIN_SIZES = 3
WAY_OUT = "Run one with: ecdit sweep isoflop"

NO_INTERVAL = (
    "no interval of a minimum: 3 sizes a budget leave nothing to tell how far configurations are off a parabola."
)
OF_TRUNKS = "no interval of an exponent: its budgets share trunks (optim.schedule=wsd) and are not independent."
LOG_LIMITS = (-300.0, 300.0)
"""Limits of the ends of an interval in logarithms; those of a parabola with almost no curvature would overflow."""
MINIMUM_ENDS = ("params_low", "params_high", "images_low", "images_high")

Floats = NDArray[np.float64]


class Lowest(NamedTuple):
    """The minimum of one curve: its place (log parameters), its loss, and whether it lies at the edge of the sizes."""

    log_params: float
    loss: float
    is_edge: bool


@dataclass(frozen=True)
class IsoFlop:
    """The profiles, their minima, the laws fitted to the minima, and a line for everything that could not be used.

    `profiles` has a row per size: `study`, `arm`, `flops`, `LOOK`, `params`, `images`, `loss`, `loss_min`, `loss_max`,
    `num_seeds`. `minima` has a row per profile and method: `study`, `arm`, `flops`, `method`, `params`, `images`,
    `loss`, `is_edge`, `params_low`, `params_high`, `images_low`, `images_high`, `num_seeds`. Only minima of parabolas
    and of the parametric law that do not lie at an edge have an interval. `laws` has a row per law, quantity = factor
    C^exponent: `study`, `arm`, `method`, `quantity` (params or images), `factor`, `exponent`, its two intervals
    (`isoflop_laws.py`), `num_budgets`. A law that falls with compute is refused. `disagreements` has a row per profile
    with at least two inner minima: `study`, `arm`, `flops`, `methods`, `factor`.
    """

    profiles: pd.DataFrame
    minima: pd.DataFrame
    laws: pd.DataFrame
    refused: tuple[str, ...]
    disagreements: pd.DataFrame


class _FlopBudget(NamedTuple):
    """The runs of one arm that spent the same FLOPs; `flops` is their geometric mean."""

    study: str
    arm: str
    flops: float
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        """Returns the arm, study and budget as messages name them."""
        return _name(self.study, self.arm, self.flops)


def isoflop(table: pd.DataFrame, size: str = "params_active") -> IsoFlop:
    """Analyses a run table, with N taken from its column `size`.

    Raises `MissingDataError` where no budget has `MIN_SIZES` sizes.
    """
    usable, refused = _usable(list(_budgets(table, size)), size)
    rows: list[dict[str, object]] = []
    of_trunks: list[tuple[str, str]] = []
    for (study, arm), group in groupby(usable, key=lambda budget: (budget.study, budget.arm)):
        budgets = list(group)
        is_shared = share_trunks(budget.runs for budget in budgets)
        of_trunks += [(study, arm)] if is_shared else []
        refused += [f"{_arm_name(study, arm)}: {OF_TRUNKS}"] if is_shared else []
        spread = scatter([_profile(budget, size) for budget in budgets], is_shared)
        refused += [] if spread else [f"{_arm_name(study, arm)}: {NO_INTERVAL}"]
        rows += [row for budget in budgets for row in _minimum_rows(budget, size, spread)]
        found, refusal = _parametric_rows(budgets, size)
        rows += found
        refused += [f"{_arm_name(study, arm)}: {refusal}"] if refusal else []
    minima = pd.DataFrame(rows).astype(dict.fromkeys(MINIMUM_ENDS, "float64"))
    refused += _edges(minima[minima["is_edge"]])
    profiles = pd.concat([_profile_rows(budget, size) for budget in usable], ignore_index=True)
    laws, falling = laws_of_minima(minima, of_trunks)
    return IsoFlop(profiles, minima, laws, (*refused, *falling), disagreements(minima))


def flops_text(flops: float) -> str:
    """Writes a budget as `2 TFLOP`, with two digits, because whole batches miss it by less than the second one."""
    budget = float(f"{flops:.2g}")
    factor, unit = scaled(budget, "FLOP")
    return f"{budget / factor:g} {unit}"


def _arm_name(study: str, arm: str) -> str:
    return f"{arm}{f' ({study})' if study else ''}"


def _name(study: str, arm: str, flops: float) -> str:
    return f"{_arm_name(study, arm)} at {flops_text(flops)}"


def _edges(minima: pd.DataFrame) -> list[str]:
    """Returns a line for each of `minima`, all of which lie at an edge."""
    rows = minima[["study", "arm", "flops", "method"]].itertuples(index=False, name=None)
    what = "minimum lies at the edge of the sizes and is not used."
    return [f"{_name(study, arm, flops)}: the {method} {what}" for study, arm, flops, method in rows]


def quadratic_minimum(log_params: Sequence[float], loss: Sequence[float]) -> Lowest:
    """Returns the minimum of the least-squares parabola through at least 3 sizes.

    It is the lower of the two ends, marked as an edge, where the parabola opens downwards or its vertex lies outside.
    """
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
    """Returns the minimum of Akima's piecewise cubic through ascending sizes; an edge is the first or last size."""
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
    """Yields the runs of each arm, grouped by the FLOPs that they spent.

    The number of images of a run follows from its budget and size, so it is set equal before settings are named.
    """
    unnamed = table.copy()
    unnamed["train.images"] = 0
    named = with_arms(unnamed)
    studied = with_images_before(named.assign(study=_studies(named), train_flops=train_flops(named)))
    for study, runs in studied.groupby("study", sort=False):
        for arm, _, _ in arm_list(runs):
            ours = runs[runs["arm"] == arm].sort_values(["train_flops", size], kind="stable")
            for of_budget in _spent_alike(ours):
                flops = math.exp(float(np.log(of_budget["train_flops"]).mean()))
                yield _FlopBudget(str(study), arm, flops, of_budget.sort_values(size, kind="stable"))


def _studies(table: pd.DataFrame) -> list[str]:
    """Says for each run which settings differ besides size, images and seed; the text is empty where none does.

    A setting that differs only between sizes (such as a learning rate that goes with the size) belongs to the size.
    """
    free = (*ARM_SETTINGS, *WITHOUT_EFFECT, "model.", "train.images")
    held = [name for name in table.columns if "." in name and not name.startswith(free)]
    sizes = table[[name for name in table.columns if name.startswith("model.")]].astype(str).agg(" ".join, axis=1)
    varying = [name for name in held if (table[name].map(str).groupby(sizes).nunique() > 1).any()]
    rows = table[["model.name", *varying]].to_dict("records")
    return [", ".join(f"{name}={setting_text(row[name])}" for name in varying) for row in rows]


def _spent_alike(runs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Cuts `runs`, which ascend in FLOPs, wherever one exceeds the first of its group by more than the tolerance."""
    firsts: list[float] = []
    of_run = []
    for flops in runs["train_flops"]:
        if not firsts or flops > firsts[-1] * (1 + BUDGET_TOLERANCE):
            firsts.append(flops)
        of_run.append(firsts[-1])
    for _, of_budget in runs.groupby(np.asarray(of_run)):
        yield of_budget


def _usable(budgets: Sequence[_FlopBudget], size: str) -> tuple[list[_FlopBudget], list[str]]:
    """Returns the budgets with enough sizes, and a line for every other one."""
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
        # Within a budget the images fall with the size, so the interval of D* is that of N* times the slope of the
        # logarithm of the images.
        found = find(*profile)
        is_known = method == "quadratic" and not found.is_edge
        half = half_width(profile, spread) if spread and is_known else None
        row: dict[str, object] = {"study": budget.study, "arm": budget.arm, "flops": budget.flops, "method": method}
        row |= {"loss": found.loss, "is_edge": found.is_edge, "num_seeds": budget.runs["seed"].nunique()}
        row |= _around("params", found.log_params, half)
        at_minimum = float(np.interp(found.log_params, profile.log_params, log_images))
        yield row | _around("images", at_minimum, half and half * abs(float(images_slope)))


def _parametric_rows(budgets: Sequence[_FlopBudget], size: str) -> tuple[list[dict[str, object]], str]:
    """Returns the minima of one arm by the joint law, or no rows and the reason."""
    runs, sizes = pd.concat([budget.runs for budget in budgets]), []
    for budget in budgets:
        images = budget.runs.groupby(size)["images_seen"].mean()
        sizes.append(SizesOfBudget(budget.flops, *(np.log(each.to_numpy(float)) for each in (images.index, images))))
    found, refusal = parametric_or_refusal(runs, size, sizes)
    rows = [
        {"study": budget.study, "arm": budget.arm, **row, "num_seeds": budget.runs["seed"].nunique()}
        for budget, row in zip(budgets, found, strict=bool(found))
    ]
    return rows, refusal


def _around(name: str, log_value: float, half: float | None) -> dict[str, float | None]:
    """Returns a value and the ends of its interval, given half of that in logarithms; None gives no interval."""
    ends = (None, None) if half is None else np.exp(np.clip([log_value - half, log_value + half], *LOG_LIMITS)).tolist()
    return {name: math.exp(log_value), f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _profile(budget: _FlopBudget, size: str) -> Profile:
    means = budget.runs.groupby(size)["val_loss"].mean()
    return Profile(np.log(means.index.to_numpy(dtype=float)).tolist(), means.to_list())
