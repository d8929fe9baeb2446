"""The columns of a table of arms: title and format of each value, the same in every command, page and export."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from analysis.columns import Column
from analysis.report.run_rows import four, whole
from analysis.run_table import INFERENCE, fixed, significant

COLUMNS = (
    Column("setup", "Setup"),
    Column("arm", "Arm"),
    Column("rate", "Learning rate", priority=3),
    Column("num_experts", "Experts", whole),
    Column("capacity_factor", "f_c", "{:g}".format),
    Column("params_total", "Params", significant, priority=4),
    Column("params_active", "Activated", significant, priority=2),
    Column("flops_per_image", "FLOPs/image", significant, priority=3),
    Column("executed_flops_per_image", "Executed FLOPs/image", significant, priority=5),
    Column("executed_flops_per_image_same_t", "Executed at one t", significant, priority=5),
    Column("planned_train_flops_per_image", "Train FLOPs/image", significant, priority=5),
    Column("executed_train_flops_per_image", "Executed train FLOPs/image", significant, priority=5),
    Column("train_flops", "Training FLOPs", significant, priority=2),
    Column("flops_before", "Of parents", significant, priority=2),
    Column("num_seeds", "Seeds", whole, priority=2),
    Column("num_diverged", "Diverged", whole, priority=1),
    Column("val_loss_mean", "Val. loss", four),
    Column("val_loss_std", "± std", four, priority=1),
    Column("val_loss_low", "95% low", four),
    Column("val_loss_high", "95% high", four),
    Column("val_loss_ema_mean", "EMA loss", four),
    Column("val_loss_same_t_mean", "Loss at one t", four, priority=5),
    Column("val_loss_training_decision", "Loss, training decision", four, priority=4),
    Column("images_to_dense_loss", "Images to dense", whole, priority=3),
    Column("images_per_second", "Train images/s", partial(fixed, decimals=1), priority=4),
    Column(INFERENCE, "Inference ms", partial(fixed, decimals=2, scale=1e3), priority=4),
    Column("dropped_share", "Dropped %", partial(fixed, decimals=1, scale=100), priority=5),
    Column("dropped_share_same_t", "Dropped at one t %", partial(fixed, decimals=1, scale=100), priority=5),
    Column("max_violation", "MaxVio", partial(fixed, decimals=2), priority=5),
    Column("pair_usage", "Pair usage %", partial(fixed, decimals=1, scale=100), priority=5),
    Column("peak_memory_gib", "Peak GiB", partial(fixed, decimals=2), priority=5),
)
BY_KEY = {column.key: column for column in COLUMNS}


DIVERGED = "num_diverged"
WITH_PARENTS = ("train_flops", "flops_before")
WHERE_MEASURED = frozenset({
    "executed_flops_per_image", "executed_flops_per_image_same_t", "executed_train_flops_per_image",
    "val_loss_training_decision", "max_violation", "pair_usage", "peak_memory_gib",
})  # fmt: skip
"""Columns that a table has only where some arm has a value: not every router and not every machine records them."""


def arm_columns(*keys: str) -> tuple[Column, ...]:
    """Returns the columns with these keys, which are those of `arm_table`, in the order given."""
    return tuple(BY_KEY[key] for key in keys)


def columns_of(arms: pd.DataFrame, columns: Sequence[Column]) -> list[Column]:
    """Returns `columns`, without those of `WHERE_MEASURED` that hold nothing.

    `DIVERGED` is there where a run diverged, and `WITH_PARENTS` where a run began from the weights of another one.
    """
    empty = {key for key in WHERE_MEASURED if arms[key].isna().all()}
    if not (arms[DIVERGED] > 0).any():
        empty.add(DIVERGED)
    if not (arms[WITH_PARENTS[-1]] > 0).any():
        empty |= set(WITH_PARENTS)
    return [column for column in columns if column.key not in empty]
