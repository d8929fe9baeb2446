"""`ema-width` shows loss and quality against the width of the average of the weights (as EDM2 shows it).

`ecdit evaluate --ema` reconstructs averages of several widths at the end of a run that trained with `train.ema=power`.
The width is the standard deviation of an average's weighting over training, relative to the length of training. There
is one row of panels per setup. Lines are means over seeds, and bands go from the lowest to the highest. For one seed
the band is the 95% interval over its images, where the metric has one.

Source: Karras et al. 2024, arXiv 2312.02696.
"""

from __future__ import annotations

import pandas as pd

from analysis.figures.panels import draw_along
from analysis.load_records import Records
from analysis.scores import measured_panels, panel_points
from analysis.style import Drawing
from experiments.config.metrics import METRICS, values_in

LOSS = METRICS["validation-loss"].values[0]


def draw_ema_width(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers, one row per metric, setup, arm and width.

    Raises `MissingDataError` where no run was measured at several widths.
    """
    panels = measured_panels(records, table, values_in("ema-width"), along="ema_width")
    panels.sort(key=lambda measured: measured.metric != LOSS)  # the loss stands first
    points = panel_points(panels, "ema_width")
    figure = draw_along(points, panels, "ema_width", "Width of the average (1: all of training)", num_ticks=7)
    return Drawing(figure, points.drop(columns="variant"))
