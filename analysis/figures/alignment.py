"""`alignment` shows the score of the exact judge against the size of the models, in the form of EC-DIT's figure 3.

Each arm has one line from size to size, so a router has a line for every number of experts. Colour shows the router,
dashes and fill the arm, and the marker the size. The left panel is for captions of looks that training saw, the right
one for held-out looks, where they were measured. Points are means over seeds with bars from the lowest to the highest,
and for one seed the 95% interval over its images. Arms of equal cost are drawn a little apart about the true place; the
CSV holds the exact numbers. With `paper_values` a panel shows EC-DIT's printed GenEval scores, for the models with most
experts of each size.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.grid import named_ticks, paper_panel
from analysis.figures.over_parameters import draw_over_parameters
from analysis.figures.panels import Printed
from analysis.load_records import Records
from analysis.paper_values import SIZES, SOURCES, paper_scores
from analysis.parameter_counts import ACTIVATED, Count
from analysis.style import Drawing, few_ticks, line_style, marker_style
from experiments.config.metrics import values_in
from experiments.config.routers import router_label


class _Name(NamedTuple):
    """The place of the name of a printed line: the size whose point it stands beside, and the offset from it."""

    size: str
    points: tuple[float, float]
    side: str


ROUTER_NAMES = {
    "expert_choice": _Name("XXL", (0, 5), "center"),
    "token_choice": _Name("XL", (7, -2), "left"),
    "dense": _Name("3XL", (0, -10), "center"),
}


def draw_alignment(
    records: Records, table: pd.DataFrame, paper_values: bool = False, parameters: Count = ACTIVATED
) -> Drawing:
    """Returns the figure and its numbers by metric, setup and arm. Raises `MissingDataError` without any score."""
    printed = Printed(_draw_printed, SOURCES["scores"]) if paper_values else None
    return draw_over_parameters(records, table, values_in("alignment"), printed, parameters)


def _draw_printed(axes: Axes) -> None:
    """Draws the printed GenEval scores against activated parameters, with a line per router."""
    scores = paper_scores()
    most = scores[scores["num_experts"] == scores.groupby(["router", "size"])["num_experts"].transform("max")]
    paper_panel(axes, "GenEval")
    axes.set_xscale("log")
    for router, models in most.groupby("router", sort=False):
        style = line_style(str(router), 0)
        for at, score, size in zip(models["params_active"], models["geneval"], models["size"], strict=True):
            axes.plot(at / 1e9, score, **marker_style(str(router), 0, str(size)))
        axes.plot(models["params_active"] / 1e9, models["geneval"], **style | {"linewidth": 0.8, "zorder": 1})
        _name_line(axes, str(router), models)
    names = [f"{size.size}\n{size.activated_billions}" for size in SIZES]
    named_ticks(axes, [size.activated_billions for size in SIZES], names)
    few_ticks(axes.yaxis, 5)
    axes.margins(x=0.2)
    axes.set_xlabel("Activated parameters (billions)")
    axes.set_ylabel("GenEval (%)")


def _name_line(axes: Axes, router: str, models: pd.DataFrame) -> None:
    at = ROUTER_NAMES[router]
    x, y = models.loc[models["size"] == at.size, ["params_active", "geneval"]].to_numpy(float)[0]
    label = router_label(router)
    axes.annotate(label, (x / 1e9, y), at.points, textcoords="offset points", ha=at.side, fontsize=6)
