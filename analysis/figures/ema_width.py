"""`ema-width` shows loss and quality against the width of the average of the weights (as EDM2 shows it).

`ecdit evaluate --ema` reconstructs averages of several widths at the end of a run that trained with `train.ema=power`.
The width is the standard deviation of an average's weighting over training, relative to the length of training. There
is one row of panels per setup. Lines are means over seeds, and bands go from the lowest to the highest. For one seed
the band is the 95% interval over its images, where the metric has one.

Source: Karras et al. 2024, arXiv 2312.02696.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from analysis.conditions import MetricRows
from analysis.figures.panels import Look, draw_arm_curve, draw_panels, logarithmic_metrics
from analysis.load_records import Records
from analysis.scores import measured_panels, panel_points
from analysis.style import Drawing, few_ticks, log_axis
from experiments.config.metrics import METRICS, values_in

LOOK = Look(rows="setup", height_inches=1.9, has_markers=False)
LOSS = METRICS["validation-loss"].values[0]


def draw_ema_width(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers, one row per metric, setup, arm and width.

    Raises `MissingDataError` where no run was measured at several widths.
    """
    panels = measured_panels(records, table, values_in("ema-width"), along="ema_width")
    panels.sort(key=lambda measured: measured.metric != LOSS)  # the loss stands first
    points = panel_points(panels, "ema_width")
    logarithmic = logarithmic_metrics(panels, points)
    widths = points["ema_width"]
    margin = 0.05 * (widths.max() - widths.min())

    def draw(axes: Axes, mine: pd.DataFrame, measured: MetricRows) -> None:
        for _, arm in mine.groupby("arm", sort=False):
            draw_arm_curve(axes, arm, arm["ema_width"])
        few_ticks(axes.xaxis, 7)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlim(widths.min() - margin, widths.max() + margin)
        if measured.metric.name in logarithmic:
            log_axis(axes, "y", mine["value"])
        axes.set_xlabel("Width of the average (1: all of training)")

    return Drawing(draw_panels(points, panels, LOOK, draw), points.drop(columns="variant"))
