"""Draws sampled metrics against the size of the models: a panel for each metric, a line per arm from size to size."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from analysis.conditions import MetricRows
from analysis.figures.panels import Look, Printed, draw_arm_points, draw_panels
from analysis.load_records import Records
from analysis.parameter_counts import Count
from analysis.scores import measured_panels, panel_points
from analysis.style import Drawing, few_ticks, is_wide, log_axis, scaled
from experiments.config.metric_row import RecordedValue

LOOK = Look(rows="study", height_inches=2.3, has_markers=True)


def draw_over_parameters(
    records: Records, table: pd.DataFrame, metrics: Sequence[RecordedValue], printed: Printed | None, parameters: Count
) -> Drawing:
    """Returns the figure and its numbers by metric, setup and arm. Raises `MissingDataError` without measurements."""
    panels = measured_panels(records, table, metrics)
    points = panel_points(panels).sort_values(parameters.column, kind="stable", ignore_index=True)
    factor, unit = scaled(float(points[parameters.column].max()), "parameters")

    def draw(axes: Axes, mine: pd.DataFrame, _measured: MetricRows) -> None:
        for _, arm in mine.groupby("arm", sort=False):
            draw_arm_points(axes, arm, arm[parameters.column] / factor, arm["aside"].iloc[0])
        few_ticks(axes.xaxis)
        if is_wide(points[parameters.column]):
            log_axis(axes, "x", points[parameters.column] / factor)
        axes.margins(x=0.12)
        axes.set_xlabel(f"{parameters.label} ({unit})")

    return Drawing(draw_panels(points, panels, LOOK, draw, printed), points.drop(columns="variant"))
