"""`alignment`: the score of the exact judge against activated parameters (the form of EC-DIT's figure 3).

One line per arm from size to size, so a router has one for every number of experts: colour the router, dashes and fill
the arm, shape the size. Left on captions of looks that training saw, right on held-out ones where they were measured.
Points are means over seeds with bars from the lowest to the highest; of one seed the 95% interval over its images.
Arms of equal cost are drawn a little apart, about the true place; the numbers are exact.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.arms import arm_list
from analysis.conditions import Measured
from analysis.figures.panels import Look, draw_arm_points, draw_panels, sideways
from analysis.load import Records
from analysis.scores import HELD_OUT, SCORE, measured_panels, panel_points
from analysis.style import Drawing, few_ticks, is_wide, log_axis, scaled

LOOK = Look(rows="study", height_inches=2.3, has_markers=True)


def draw_alignment(records: Records, table: pd.DataFrame) -> Drawing:
    """The figure and its numbers: one row per metric, setting and arm. `MissingDataError` where nothing was scored."""
    panels = measured_panels(records, table, (SCORE, HELD_OUT))
    points = panel_points(panels).sort_values("params_active", kind="stable", ignore_index=True)
    arms = arm_list(points)
    factor, unit = scaled(float(points["params_active"].max()), "parameters")

    def draw(axes: Axes, mine: pd.DataFrame, _measured: Measured) -> None:
        for label, arm in mine.groupby("arm", sort=False):
            draw_arm_points(axes, arm, arm["params_active"] / factor, sideways(arms, str(label)))
        few_ticks(axes.xaxis)
        if is_wide(points["params_active"]):
            log_axis(axes, "x", points["params_active"] / factor)
        axes.margins(x=0.12)
        axes.set_xlabel(f"Activated parameters ({unit})")

    return Drawing(draw_panels(points, panels, LOOK, draw), points.drop(columns="variant"))
