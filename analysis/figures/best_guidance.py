"""`best-guidance` shows the guidance scale that is best for each arm, against the size of the models.

The best scale is the one with the best mean over seeds among the scales at which all seeds of the arm were measured.
Bars go from the lowest to the highest best scale of single seeds. The true best scale lies somewhere between the
neighbours of the measured one; a hollow ring marks a best scale that is the smallest or largest measured, where it may
lie outside. There is a panel for each metric, because the scale that follows captions best is rarely the one whose
images are closest to the data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analysis.conditions import MetricRows
from analysis.figures.panels import Look, draw_arm_points, draw_panels, moved, write_foot
from analysis.load_records import Records
from analysis.parameter_counts import ACTIVATED, Count
from analysis.scores import arm_means, measured_panels
from analysis.style import Drawing, few_ticks, is_wide, log_axis, scaled
from experiments.config.metrics import values_in

LOOK = Look(rows="study", height_inches=2.3, has_markers=True)
EDGE_NOTE = "A ring marks the smallest or largest scale measured: the best one may lie outside."
RING: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 10, "fillstyle": "none", "markeredgewidth": 0.7, "color": "black",
}  # fmt: skip


def draw_best_guidance(records: Records, table: pd.DataFrame, parameters: Count = ACTIVATED) -> Drawing:
    """Returns the figure and its numbers, a row per metric, setup and arm; `value` is the best scale.

    Raises `MissingDataError` where no run was judged at several scales.
    """
    judged = [value for value in values_in("guidance") if not value.is_optional]  # a divergence is not better or worse
    panels = [
        replace(panel, metric=replace(panel.metric, axis=f"Best guidance scale\n(by {panel.metric.name})"))
        for panel in measured_panels(records, table, judged, along="guidance")
    ]
    points = pd.concat([best_scales(panel) for panel in panels], ignore_index=True)
    points = points.sort_values(parameters.column, kind="stable", ignore_index=True)
    factor, unit = scaled(float(points[parameters.column].max()), "parameters")

    def draw(axes: Axes, mine: pd.DataFrame, _measured: MetricRows) -> None:
        for _, arm in mine.groupby("arm", sort=False):
            aside, edges = arm["aside"].iloc[0], arm[arm["is_edge"]]
            draw_arm_points(axes, arm, arm[parameters.column] / factor, aside)
            axes.plot(edges[parameters.column] / factor, edges["value"], **RING, transform=moved(axes, aside))
        few_ticks(axes.xaxis)
        few_ticks(axes.yaxis)
        if is_wide(points[parameters.column]):
            log_axis(axes, "x", points[parameters.column] / factor)
        axes.margins(x=0.12, y=0.15)
        axes.set_xlabel(f"{parameters.label} ({unit})")

    figure = draw_panels(points, panels, LOOK, draw)
    if points["is_edge"].any():
        write_foot(figure, [*figure.get_supxlabel().splitlines(), EDGE_NOTE])
    return Drawing(figure, points.drop(columns="variant"))


def best_scales(measured: MetricRows) -> pd.DataFrame:
    """Returns a row per setup and arm: the best scale as `value`, its range over seeds as `low` and `high`.

    `best` is the metric there, and `is_edge` says that the scale is the smallest or largest that was measured.
    """
    ascending = not measured.metric.higher_is_better
    means = arm_means(measured.rows, "guidance").sort_values("value", ascending=ascending, kind="stable")
    best = means.drop_duplicates(["setup", "arm"]).rename(columns={"value": "best", "guidance": "value"})
    of_seed = measured.rows.sort_values("value", ascending=ascending, kind="stable").drop_duplicates("run")
    by_arm = of_seed.groupby(["setup", "arm"])["guidance"]
    ends = pd.DataFrame({"low": by_arm.min(), "high": by_arm.max(), "num_seeds": by_arm.size()})
    scales = means.groupby(["setup", "arm"])["guidance"]
    ends["is_least"], ends["is_most"] = scales.min(), scales.max()
    points = best.drop(columns=["low", "high", "num_seeds", "spread"]).join(ends, on=["setup", "arm"])
    is_edge = (points["value"] == points.pop("is_least")) | (points["value"] == points.pop("is_most"))
    spread = points["num_seeds"].map(lambda number: "seeds" if number > 1 else "")
    return points.assign(is_edge=is_edge, spread=spread, metric=measured.metric.name, **measured.conditions)
