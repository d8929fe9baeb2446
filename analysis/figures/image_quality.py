"""`image-quality` shows distances to real images and CLIP score against the size of the models (EC-DIT's figure 7).

There is a panel for each measured metric whose row in `experiments.config.metrics` names this figure. Better images
have lower Frechet distances (of the bundled features, and FID where it was measured) and a higher CLIP score. Each arm
has one line from size to size. Points are means over seeds with bars from the lowest to the highest. With
`paper_values` a panel shows the three models for which EC-DIT printed both FID and CLIP score.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.grid import paper_panel
from analysis.figures.over_parameters import draw_over_parameters
from analysis.figures.panels import Printed
from analysis.load_records import Records
from analysis.paper_values import QUALITY, SOURCES
from analysis.parameter_counts import ACTIVATED, Count
from analysis.style import Drawing, few_ticks, marker_style
from experiments.config.metrics import values_in
from experiments.config.routers import router_label


def draw_image_quality(
    records: Records, table: pd.DataFrame, paper_values: bool = False, parameters: Count = ACTIVATED
) -> Drawing:
    """Returns the figure and its numbers by metric, setup and arm. Raises `MissingDataError` without measurements."""
    printed = Printed(_draw_printed, SOURCES["quality"]) if paper_values else None
    return draw_over_parameters(records, table, values_in("image-quality"), printed, parameters)


def _draw_printed(axes: Axes) -> None:
    """Draws FID against CLIP score of the three models for which both were printed."""
    paper_panel(axes, "FID, CLIP")
    for model in QUALITY:
        axes.plot(model.clip_score, model.fid, **marker_style(model.router, 0, model.size))
        size = f"{model.size}-{model.num_experts}E" if model.num_experts else model.size
        beside: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 6}
        axes.annotate(f"{router_label(model.router)}\n{size}", (model.clip_score, model.fid), (0, 5), **beside)
    axes.margins(0.35)
    few_ticks(axes.xaxis, 3)
    axes.set_xlabel("CLIP score (higher is better)")
    axes.set_ylabel("FID (lower is better)")
