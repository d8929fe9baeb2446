"""The scaling laws of a report: every form is fitted to every family of runs, where the runs identify it.

`analysis/laws/families.py` divides the runs into families. N is read from the column of the run table that the
argument `size` names, D is the number of training images, and C is the training FLOPs. Both include what the first
weights of a run have cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from analysis.executed_flops import with_images_before
from analysis.laws.bootstrap import NUM_RESAMPLES, BootstrapEstimate, bootstrap
from analysis.laws.families import arm_families, length_families, router_families
from analysis.laws.fit import FitError
from analysis.laws.forms import (
    CHINCHILLA,
    JOINT,
    JOINT_SATURATED,
    POWER_LAW,
    POWER_LAW_WITHOUT_FLOOR,
    ROUTED,
    ROUTED_SATURATED,
    Form,
)
from analysis.laws.identify import identified_fit
from analysis.laws.leave_size_out import leave_each_size_out
from analysis.laws.observations import Observations, observe
from analysis.laws.predict import leave_largest_out
from analysis.load_records import MissingDataError

OF_ARM = (POWER_LAW, POWER_LAW_WITHOUT_FLOOR, CHINCHILLA)
OF_ROUTER = (JOINT, JOINT_SATURATED)
OF_ROUTER_AND_IMAGES = (ROUTED, ROUTED_SATURATED)


@dataclass(frozen=True)
class Law:
    """One form fitted to one family of runs: its parameters with intervals and its headline, or why it is refused.

    `parameters` is None where the law was not fitted, and `refusal` then has the reason. `resamples` describes the
    bootstrap, `headline` the prediction error on the largest runs, and `sizes` that on each size left out in turn.
    """

    form: Form
    family: str
    num_runs: int
    parameters: dict[str, BootstrapEstimate] | None = None
    resamples: str = ""
    headline: str = ""
    refusal: str = ""
    sizes: str = ""


def laws(
    rows: pd.DataFrame,
    size: str = "params_active",
    num_resamples: int = NUM_RESAMPLES,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Law]:
    """Returns every form for every family of the run rows (`run_rows`), ordered by form; `tell` announces each fit."""
    columns = {"N": size, "D": "images_seen", "C": "train_flops", "experts": "routing.num_experts"}
    found = []
    rows = with_images_before(rows)
    of_forms = ((OF_ARM, arm_families), (OF_ROUTER_AND_IMAGES, length_families), (OF_ROUTER, router_families))
    for forms, families in of_forms:
        for form in forms:
            for family, runs in families(rows):
                tell(f"law {form.name} of {family}")
                named = runs.assign(configuration=runs["setup"] + ": " + runs["arm"])
                variables = {name: columns[name] for name in dict.fromkeys((*form.variables, "C", "N"))}
                observations = observe(named, variables, arm="configuration")
                found.append(_law(form, family, observations, num_resamples))
    return found


def _law(form: Form, family: str, observations: Observations, num_resamples: int) -> Law:
    num_runs = len(observations)
    try:
        resampled = bootstrap(identified_fit(form, observations), num_resamples=num_resamples)
    except (MissingDataError, FitError) as error:
        return Law(form, family, num_runs, refusal=str(error).removeprefix(f"{form.equation} cannot be fitted: "))
    headline = _headline(form, observations, num_resamples)
    sizes = _sizes(form, observations)
    return Law(form, family, num_runs, resampled.parameters, str(resampled), headline, sizes=sizes)


def _headline(form: Form, observations: Observations, num_resamples: int) -> str:
    """Returns a sentence with the prediction error on the largest runs, held out of the fit, or why it is unknown."""
    try:
        return str(leave_largest_out(form, observations, num_resamples=num_resamples))
    except (MissingDataError, FitError) as error:
        return f"How well it predicts larger runs is not known: {error}"


def _sizes(form: Form, observations: Observations) -> str:
    """Returns a sentence with the errors on the sizes left out in turn, or why they are unknown."""
    try:
        return str(leave_each_size_out(form, observations))
    except MissingDataError as error:
        return f"How well it predicts a size left out is not known: {error}"
