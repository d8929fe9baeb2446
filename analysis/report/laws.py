"""The scaling laws of a report: every form for every family of runs, fitted where the runs identify it.

A family holds everything equal that a law has no variable for. Laws in compute, or in parameters and images, are of
one arm; laws with the number of experts are of one router, all its numbers of experts and dense of the same depth as
one expert, and the routed one, which has no variable for images, of one length of training besides. Runs that differ
in anything else that acts on losses, as the learning rate, are different families.

N is the column `size` of the run table, D the images of training, C its FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from analysis.arms import ROUTER_LABELS, group_text
from analysis.laws.bootstrap import Estimate, bootstrap
from analysis.laws.fit import FitError
from analysis.laws.forms import CHINCHILLA, JOINT, JOINT_SATURATED, POWER_LAW, ROUTED, ROUTED_SATURATED, Form
from analysis.laws.identify import identified_fit
from analysis.laws.observations import Observations, observe
from analysis.laws.predict import leave_largest_out
from analysis.load import MissingDataError

NUM_RESAMPLES = 1000
OF_ARM = (POWER_LAW, CHINCHILLA)
OF_ROUTER = (JOINT, JOINT_SATURATED)
OF_ROUTER_AND_IMAGES = (ROUTED, ROUTED_SATURATED)
SIZES = ("model.", "train.images")
"""Beginnings of the parts of a setting that are no condition but a variable of the laws."""


@dataclass(frozen=True)
class Law:
    """One form for one family: its parameters with intervals and its headline, or why there is none."""

    form: Form
    family: str
    num_runs: int
    parameters: dict[str, Estimate] | None = None
    resamples: str = ""
    headline: str = ""
    refusal: str = ""


def laws(rows: pd.DataFrame, size: str = "params_active", num_resamples: int = NUM_RESAMPLES) -> list[Law]:
    """Every form for every family of the run rows (`run_rows`), in the order of the forms."""
    columns = {"N": size, "D": "images_seen", "C": "train_flops", "experts": "routing.num_experts"}
    found = []
    for forms, families in ((OF_ARM, _arms), (OF_ROUTER_AND_IMAGES, _lengths), (OF_ROUTER, _routers)):
        for form in forms:
            for family, runs in families(rows):
                observations = observe(runs, {name: columns[name] for name in {*form.variables, "C"}}, arm="arm")
                found.append(_law(form, family, observations, num_resamples))
    return found


def _law(form: Form, family: str, observations: Observations, num_resamples: int) -> Law:
    num_runs = len(observations)
    try:
        resampled = bootstrap(identified_fit(form, observations), num_resamples=num_resamples)
    except (MissingDataError, FitError) as error:
        return Law(form, family, num_runs, refusal=str(error).removeprefix(f"{form.equation} cannot be fitted: "))
    headline = _headline(form, observations, num_resamples)
    return Law(form, family, num_runs, resampled.parameters, str(resampled), headline)


def _headline(form: Form, observations: Observations, num_resamples: int) -> str:
    """The error on the largest runs when the law has not seen them, or why it is not known."""
    try:
        return str(leave_largest_out(form, observations, num_resamples=num_resamples))
    except (MissingDataError, FitError) as error:
        return f"How well it predicts larger runs is not known: {error}"


Families = Iterator[tuple[str, pd.DataFrame]]


def _arms(rows: pd.DataFrame) -> Families:
    for condition, runs in _conditions(rows):
        for arm, of_arm in runs.groupby("arm", sort=False):
            yield f"{arm}{condition}", of_arm


def _routers(rows: pd.DataFrame) -> Families:
    for condition, runs in _conditions(rows):
        dense = runs[runs["arm_kind"] == "dense_same_depth"]
        routed = runs[runs["arm_kind"] == "sparse"]
        if routed.empty:
            continue
        for (router, _), of_router in routed.groupby(["routing.name", _routing_keys(routed)], sort=False):
            f_c = of_router["routing.capacity_factor"].iloc[0]
            group = of_router["routing.group_images"].iloc[0]
            capacity = "" if pd.isna(f_c) else f", f_c {f_c:g}"
            grouped = "" if pd.isna(group) else f", {group_text(group)}"
            beside = " and dense" if len(dense) else ""
            yield f"{ROUTER_LABELS[str(router)]}{capacity}{grouped}{beside}{condition}", pd.concat([dense, of_router])


def _lengths(rows: pd.DataFrame) -> Families:
    for images, runs in rows.groupby("images_seen"):
        for family, of_family in _routers(runs):
            yield f"{family}, {images:,} images", of_family


def _conditions(rows: pd.DataFrame) -> Families:
    conditions = pd.Series([_condition(setting) for setting in rows["setting"]], index=rows.index)
    yield from ((str(condition), runs) for condition, runs in rows.groupby(conditions, sort=False))


def _condition(setting: str) -> str:
    """What a setting says beside sizes and lengths of training, as `, optim.learning_rate=0.001`."""
    parts = [part for part in setting.split(", ")[1:] if not part.startswith(SIZES) and not part.endswith(" images")]
    return "".join(f", {part}" for part in parts)


def _routing_keys(runs: pd.DataFrame) -> pd.Series[str]:
    """Equal where runs of one router differ in the number of experts at most."""
    names = [name for name in runs.columns if name.startswith("routing.") and name != "routing.num_experts"]
    return runs[names].map(str).agg(" ".join, axis=1)
