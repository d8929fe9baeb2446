"""The columns of a table of arms: title and format of each value, the same on every page and in every export."""

from __future__ import annotations

from functools import partial

from analysis.report.document import ReportColumn
from analysis.report.run_rows import four, whole
from analysis.run_table import INFERENCE, fixed, significant

COLUMNS = (
    ReportColumn("setting", "Setting"),
    ReportColumn("arm", "Arm"),
    ReportColumn("num_experts", "Experts", whole),
    ReportColumn("capacity_factor", "f_c", "{:g}".format),
    ReportColumn("params_total", "Params", significant),
    ReportColumn("params_active", "Activated", significant),
    ReportColumn("flops_per_image", "FLOPs/image", significant),
    ReportColumn("num_seeds", "Seeds", whole),
    ReportColumn("val_loss_mean", "Val. loss", four),
    ReportColumn("val_loss_std", "± std", four),
    ReportColumn("val_loss_low", "95% low", four),
    ReportColumn("val_loss_high", "95% high", four),
    ReportColumn("val_loss_ema_mean", "EMA loss", four),
    ReportColumn("val_loss_same_t_mean", "Same-t loss", four),
    ReportColumn("images_to_dense_loss", "Images to dense", whole),
    ReportColumn("images_per_second", "Train images/s", partial(fixed, decimals=1)),
    ReportColumn(INFERENCE, "Inference ms", partial(fixed, decimals=2, scale=1e3)),
    ReportColumn("dropped_share", "Dropped %", partial(fixed, decimals=1, scale=100)),
    ReportColumn("dropped_share_same_t", "Same-t dropped %", partial(fixed, decimals=1, scale=100)),
)
BY_KEY = {column.key: column for column in COLUMNS}


def arm_columns(*keys: str) -> tuple[ReportColumn, ...]:
    """Returns the columns with these keys, which are those of `arm_table`, in the order given."""
    return tuple(BY_KEY[key] for key in keys)
