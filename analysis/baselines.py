"""Finds the dense arm that an arm is measured from: the `Dense (same depth)` of its setup with its depth and width.

A setup in which the depth is varied has dense arms of several depths, each of which is the baseline of the routed arms
of its depth. Figures, tables, claims, alarms and the names of arms all ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

DEPTH = "model.num_layers"
SHAPE = (DEPTH, "model.ffn_factor")
"""The settings in which dense models of one setup may differ."""
COMPARED = (
    "setup", "arm", "arm_kind", "variant", "seed", "val_loss", "val_loss_same_t", "routing.name", "routing.num_experts",
    "routing.capacity_factor", "model.sparse_layers", "train.init_from", *SHAPE,
)  # fmt: skip
"""The columns of the run table by which arms are told apart, paired and compared in loss."""


def narrowed(table: pd.DataFrame, *others: str) -> pd.DataFrame:
    """Returns the columns `COMPARED` and `others` of the run table, as far as it has them.

    Taking the rows of an arm out of two hundred columns lasts milliseconds, and is done for every pair of arms.
    """
    return table[[name for name in dict.fromkeys((*COMPARED, *others)) if name in table]]


def baselines(runs: pd.DataFrame) -> dict[str, str]:
    """Maps the arms of one setup to the labels of the dense arms that they are measured from; each baseline is its own.

    An arm of another width is measured from the baseline of its depth, and a dense arm of another depth from the only
    one. An arm for which there is none is left out.
    """
    arms = runs.drop_duplicates("arm")
    dense = arms[arms["arm_kind"] == "dense_same_depth"]
    found: dict[str, str] = {}
    for _, arm in arms.iterrows():
        if arm["arm_kind"] == "dense_same_depth":
            found[str(arm["arm"])] = str(arm["arm"])
        elif len(alike := measured_from(dense, arm, takes_only=arm["arm_kind"] != "sparse")):
            found[str(arm["arm"])] = str(alike["arm"].iloc[0])
    return found


def measured_from(dense: pd.DataFrame, arm: pd.Series[Any], takes_only: bool) -> pd.DataFrame:
    """Returns the rows of `dense` (one for each dense arm) of the depth and width of `arm`, else those of its depth.

    With `takes_only` the only dense arm stands in where there is none of that depth. The result may be empty.
    """
    alike = _same_shape(dense, arm, SHAPE)
    if alike.empty:
        alike = _same_shape(dense, arm, (DEPTH,))
    return dense if alike.empty and takes_only and len(dense) == 1 else alike


def _same_shape(runs: pd.DataFrame, like: pd.Series[Any], settings: Sequence[str]) -> pd.DataFrame:
    """Returns those `runs` that have the `settings` of the run `like`; a table may lack a column."""
    is_alike = pd.Series(True, index=runs.index)
    for name in settings:
        if name in runs:
            is_alike &= runs[name] == like[name]
    return runs[is_alike]
