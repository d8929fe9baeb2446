"""`guidance` shows score, Frechet distance and branch divergence against the scale of classifier-free guidance.

The conditional and the unconditional branch may send a token to different experts. The divergence is the share of
token-to-expert assignments that only one of them has (0 when all are the same, 1 when none is). There is one row of
panels per setup. Lines are means over seeds, and bands go from the lowest to the highest. For one seed the band is
the 95% interval over its images, where the metric has one.
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
from experiments.config.metrics import values_in

LOOK = Look(rows="setup", height_inches=1.9, has_markers=False)


def draw_guidance(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers, one row per metric, setup, arm and scale.

    Raises `MissingDataError` where no run was measured at several scales.
    """
    panels = measured_panels(records, table, values_in("guidance"), along="guidance")
    points = panel_points(panels, "guidance")
    logarithmic = logarithmic_metrics(panels, points)
    scales = points["guidance"]
    margin = 0.05 * (scales.max() - scales.min())

    def draw(axes: Axes, mine: pd.DataFrame, measured: MetricRows) -> None:
        for _, arm in mine.groupby("arm", sort=False):
            draw_arm_curve(axes, arm, arm["guidance"])
        few_ticks(axes.xaxis, 5)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlim(scales.min() - margin, scales.max() + margin)
        if measured.metric.name in logarithmic:
            log_axis(axes, "y", mine["value"])
        axes.set_xlabel("Guidance scale (1: none)")

    return Drawing(draw_panels(points, panels, LOOK, draw), points.drop(columns="variant"))
