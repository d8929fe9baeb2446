"""Finds the dense arm that an arm is measured from: the `Dense (same depth)` of its setup with its depth and width.

A setup in which the depth is varied has dense arms of several depths, each of which is the baseline of the routed arms
of its depth. Figures, tables, claims and alarms all ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

DEPTH = "model.num_layers"
SHAPE = (DEPTH, "model.ffn_factor")
"""The settings in which dense models of one setup may differ."""


def baselines(runs: pd.DataFrame) -> dict[str, str]:
    """Maps the arms of one setup to the labels of the dense arms that they are measured from; each baseline is its own.

    An arm of another width is measured from the baseline of its depth, and a dense arm of another depth from the only
    one. An arm for which there is none is left out.
    """
    arms = runs.drop_duplicates("arm")
    dense = arms[arms["arm_kind"] == "dense_same_depth"]
    found: dict[str, str] = {}
    for _, arm in arms.iterrows():
        alike = same_shape(dense, arm)
        if arm["arm_kind"] == "dense_same_depth":
            alike = alike[alike["arm"] == arm["arm"]]
        elif alike.empty:
            alike = same_shape(dense, arm, (DEPTH,))
            if alike.empty and arm["arm_kind"] != "sparse" and len(dense) == 1:
                alike = dense
        if len(alike):
            found[str(arm["arm"])] = str(alike["arm"].iloc[0])
    return found


def same_shape(runs: pd.DataFrame, like: pd.Series[Any], settings: Sequence[str] = SHAPE) -> pd.DataFrame:
    """Returns those `runs` that have the `settings` of the run `like`; a table may lack a column."""
    is_alike = pd.Series(True, index=runs.index)
    for name in settings:
        if name in runs:
            is_alike &= runs[name] == like[name]
    return runs[is_alike]
