"""`image-quality`: distance to real images and CLIP score against activated parameters (EC-DIT's figure 7).

Frechet distances (of the embedded features, and FID where it was measured) fall with quality, CLIP score rises. One
line per arm from size to size. Points are means over seeds with bars from the lowest to the highest. With
`paper_values` a panel shows the three models of which EC-DIT printed both.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.arms import arm_list
from analysis.conditions import Measured, Metric
from analysis.figures.grid import paper_panel
from analysis.figures.panels import Look, Printed, draw_arm_points, draw_panels, sideways
from analysis.load import Records
from analysis.paper_values import QUALITY, SOURCES
from analysis.scores import FRECHET, measured_panels, panel_points
from analysis.style import Drawing, few_ticks, is_wide, log_axis, marker_style, scaled

FID = Metric("fid", "FID\n(lower is better)", 1.0, False)
CLIP_SCORE = Metric("clip-score", "CLIP score\n(higher is better)", 1.0, True)
LOOK = Look(rows="study", height_inches=2.3, has_markers=True)


def draw_image_quality(records: Records, table: pd.DataFrame, paper_values: bool = False) -> Drawing:
    """The figure and its numbers: a row per metric, setting and arm. `MissingDataError` where nothing was measured."""
    panels = measured_panels(records, table, (FRECHET, FID, CLIP_SCORE))
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

    printed = Printed(_draw_printed, SOURCES["quality"]) if paper_values else None
    return Drawing(draw_panels(points, panels, LOOK, draw, printed), points.drop(columns="variant"))


def _draw_printed(axes: Axes) -> None:
    """The three models of which FID and CLIP score were printed, one against the other."""
    paper_panel(axes, "FID, CLIP")
    for model in QUALITY:
        axes.plot(model.clip_score, model.fid, **marker_style(model.router, 0, model.size))
        name = f"{model.size}-{model.num_experts}E" if model.num_experts else model.size
        axes.annotate(name, (model.clip_score, model.fid), (0, 5), textcoords="offset points", ha="center", fontsize=6)
    axes.margins(0.25)
    few_ticks(axes.xaxis, 3)
    axes.set_xlabel("CLIP score (higher is better)")
    axes.set_ylabel("FID (lower is better)")
