"""`quality-over-training` shows Frechet distance and score of the exact judge over training (EC-DIT's figure 5).

Both are measured while the runs train, and every point has the same number of images (`eval.metric_images`), because a
Frechet distance depends on it. There is one row of panels per setup. Lines are means over seeds, where every seed of
an arm was measured, and bands go from the lowest to the highest. For one seed the band of the score is the 95% interval
over its images.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.conditions import MetricRows
from analysis.figures.panels import Look, draw_arm_curve, draw_panels, logarithmic_metrics
from analysis.load_records import Records
from analysis.scores import measured_panels, panel_points
from analysis.style import Drawing, few_ticks, log_axis, scaled
from experiments.config.metrics import METRICS, in_recorded_order, values_in

LOOK = Look(rows="setup", height_inches=1.9, has_markers=False)


def draw_quality_over_training(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers, one row per metric, setup, arm and point of training.

    Raises `MissingDataError` where no run was measured at several points.
    """
    metrics = values_in("quality-over-training", in_recorded_order(METRICS))
    panels = measured_panels(records, table, metrics, along="images_seen")
    points = panel_points(panels, "images_seen")
    logarithmic = logarithmic_metrics(panels, points)
    longest = points.groupby("setup")["images_seen"].max().astype(float).to_dict()

    def draw(axes: Axes, mine: pd.DataFrame, measured: MetricRows) -> None:
        factor, unit = scaled(longest[mine["setup"].iloc[0]], "images")
        for _, arm in mine.groupby("arm", sort=False):
            draw_arm_curve(axes, arm, arm["images_seen"] / factor)
        axes.set_xlim(0, 1.03 * longest[mine["setup"].iloc[0]] / factor)
        few_ticks(axes.xaxis)
        if measured.metric.name in logarithmic:
            log_axis(axes, "y", mine["value"])
        axes.set_xlabel(f"Training images ({unit})")

    return Drawing(draw_panels(points, panels, LOOK, draw), points.drop(columns="variant"))
