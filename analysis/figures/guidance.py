"""`guidance` shows score, Frechet distance and branch divergence against the scale of classifier-free guidance.

The conditional and the unconditional branch may send a token to different experts. The divergence is the share of
token-to-expert assignments that only one of them has (0 when all are the same, 1 when none is). There is one row of
panels per setup. Lines are means over seeds, and bands go from the lowest to the highest. For one seed the band is
the 95% interval over its images, where the metric has one.
"""

from __future__ import annotations

import pandas as pd

from analysis.figures.panels import draw_along
from analysis.load_records import Records
from analysis.scores import measured_panels, panel_points
from analysis.style import Drawing
from experiments.config.metrics import values_in


def draw_guidance(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers, one row per metric, setup, arm and scale.

    Raises `MissingDataError` where no run was measured at several scales.
    """
    panels = measured_panels(records, table, values_in("guidance"), along="guidance")
    points = panel_points(panels, "guidance")
    figure = draw_along(points, panels, "guidance", "Guidance scale (1: none)", num_ticks=5)
    return Drawing(figure, points.drop(columns="variant"))
