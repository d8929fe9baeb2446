"""Which runs one law is fitted to: families that hold everything equal that a law has no variable for.

Laws in compute, or in parameters and images, are of one arm; laws with the number of experts are of one router, all its
numbers of experts and dense of the same depth as one expert, and the routed one, which has no variable for images, of
one length of training besides. Runs that differ in anything else that acts on losses, as the learning rate, are
different families.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.arms import ROUTER_LABELS, group_text

SIZES = ("model.", "train.images")
"""Beginnings of the parts of a setting that are no condition but a variable of the laws."""

Families = Iterator[tuple[str, pd.DataFrame]]
"""(name, its rows of a run table)"""


def arm_families(rows: pd.DataFrame) -> Families:
    """The runs of one arm under equal conditions, of all sizes and lengths of training."""
    for condition, runs in condition_families(rows):
        for arm, of_arm in runs.groupby("arm", sort=False):
            yield f"{arm}{condition}", of_arm


def router_families(rows: pd.DataFrame) -> Families:
    """The runs of one router with all its numbers of experts, beside those of dense of the same depth."""
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
            beside = " and dense" if len(dense) else ""
            yield f"{ROUTER_LABELS[str(router)]}{capacity}{grouped}{beside}{condition}", pd.concat([dense, of_router])


def length_families(rows: pd.DataFrame) -> Families:
    """`router_families` of one length of training each."""
    for images, runs in rows.groupby("images_seen"):
        for family, of_family in router_families(runs):
            yield f"{family}, {images:,} images", of_family


def condition_families(rows: pd.DataFrame) -> Families:
    """The runs that differ in sizes, lengths of training, routing and seeds alone; named `, optim.learning_rate=0.001`.

    The name is empty where all runs are alike.
    """
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
