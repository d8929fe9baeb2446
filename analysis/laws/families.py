"""Divide runs into the families to which one law is fitted: only what the law has a variable for differs in a family.

A law in compute, or in parameters and images, is fitted to the runs of one arm. A law in the number of experts is
fitted to the runs of one router with all its numbers of experts, and to dense models of the same depth, which count as
one expert. The routed law has no variable for images, so its families have one length of training each. Runs that
differ in anything else that acts on the loss, such as the learning rate, belong to different families.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.arms import PLACEMENT, group_text
from experiments.config.routers import router_label

EXPERTS = "routing.num_experts"
SIZES = ("model.", "train.images")
"""Prefixes of those parts of a setup that are variables of the laws and do not separate families."""

MOST_CONDITIONS = 4
"""The most conditions under which laws are fitted. A fit takes a second for each arm under each of them, and a search
over 30 learning rates asks for the law at the best ones, not for 30 laws of every arm."""

Families = Iterator[tuple[str, pd.DataFrame]]
"""Pairs of the name of a family and its rows of the run table."""


def arm_families(rows: pd.DataFrame) -> Families:
    """Yields the runs of each arm under equal conditions, with all sizes and lengths of training."""
    for condition, runs in condition_families(rows):
        for arm, of_arm in runs.groupby("arm", sort=False):
            yield f"{arm}{condition}", of_arm


def router_families(rows: pd.DataFrame) -> Families:
    """Yields the runs of each router with all its numbers of experts, together with dense runs of the same depth."""
    for condition, runs in condition_families(rows):
        dense = runs[runs["arm_kind"] == "dense_same_depth"]
        routed = runs[runs["arm_kind"] == "sparse"]
        if routed.empty:
            continue
        for (router, _), of_router in routed.groupby(["routing.name", _routing_keys(routed)], sort=False):
            f_c = of_router["routing.capacity_factor"].iloc[0]
            group = of_router["routing.group_images"].iloc[0]
            capacity = "" if pd.isna(f_c) else f", f_c {f_c:g}"
            grouped = "" if pd.isna(group) else f", {group_text(group)}"
            several = PLACEMENT in routed and routed[PLACEMENT].nunique() > 1  # a table may lack the column
            placed = f", sparse layers {of_router[PLACEMENT].iloc[0]}" if several else ""
            beside = " and dense" if len(dense) else ""
            name = f"{router_label(str(router))}{capacity}{grouped}{placed}{beside}{condition}"
            yield name, pd.concat([dense, of_router])


def length_families(rows: pd.DataFrame) -> Families:
    """Yields the `router_families` separately for each length of training."""
    for images, runs in rows.groupby("images_seen"):
        for family, of_family in router_families(runs):
            yield f"{family}, {images:,} images", of_family


def condition_families(rows: pd.DataFrame) -> Families:
    """Yields groups of runs that differ only in size, length of training, routing and seed.

    Each comes with the text of its other settings, as in `, optim.learning_rate=0.001`, to be appended to
    the name of an arm and is empty for runs whose settings name nothing else.
    """
    yield from ((str(condition), runs) for condition, runs in rows.groupby(_conditions(rows), sort=False))


def best_conditions(rows: pd.DataFrame, most: int = MOST_CONDITIONS) -> tuple[pd.DataFrame, str]:
    """Returns the runs under the conditions with the lowest validation losses, and a sentence about the others.

    The sentence is empty where no condition is left out.
    """
    conditions = _conditions(rows)
    lowest = rows["val_loss"].groupby(conditions).min().sort_values(kind="stable")
    if len(lowest) <= most:
        return rows, ""
    note = (
        f"Laws are those of the {most} of {len(lowest)} conditions (such as the learning rate) that reach the lowest "
        f"validation losses, {lowest.iloc[0]:.4f} to {lowest.iloc[most - 1]:.4f}; the others reach "
        f"{lowest.iloc[most]:.4f} to {lowest.iloc[-1]:.4f}."
    )
    return rows[conditions.isin(lowest.index[:most])], note


def _conditions(rows: pd.DataFrame) -> pd.Series[str]:
    texts = {setup: _condition(setup) for setup in rows["setup"].unique()}
    return rows["setup"].map(texts)


def _condition(setup: str) -> str:
    """Returns the parts of a setup other than size and length of training, as in `, optim.learning_rate=0.001`."""
    parts = [part for part in setup.split(", ")[1:] if not part.startswith(SIZES) and not part.endswith(" images")]
    return "".join(f", {part}" for part in parts)


def _routing_keys(runs: pd.DataFrame) -> pd.Series[str]:
    """Returns a key for each run, equal for runs whose routing differs in nothing but the number of experts."""
    names = [name for name in runs.columns if name.startswith(("routing.", PLACEMENT)) and name != EXPERTS]
    return runs[names].map(str).agg(" ".join, axis=1)
