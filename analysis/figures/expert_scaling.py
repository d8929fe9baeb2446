"""`expert-scaling` shows the final validation loss against the number of experts at a fixed number activated per token.

There is one panel per setup (and family of routers, where these are many), with a line per router and whatever else its
arms differ in. More experts mean more weights, but a token passes through as many as before (except for the router's
own column per expert). Dense baselines are horizontal lines. Points are means over seeds, bars go from the lowest to
the highest, and lines lie a little apart. With `paper_values` a panel shows EC-DIT's printed GenEval scores against the
number of experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures.arm_limits import within_limits
from analysis.figures.family_panels import COLUMNS, height_beside_keys, keys_beside, parts, share_limits_of_setups
from analysis.figures.grid import (
    PANEL_HEIGHT_INCHES,
    Key,
    draw_family,
    families,
    label_losses,
    line_keys,
    loss_points,
    named_ticks,
    num_columns,
    panel_grid,
    paper_panel,
    place_keys,
    seed_key,
    title_panel,
)
from analysis.figures.panels import write_foot
from analysis.load_records import MissingDataError, Records
from analysis.paper_values import SOURCES, paper_scores
from analysis.run_table import significant
from analysis.style import GREY, SIZE_MARKERS, Drawing, few_ticks, line_style, paper_style, shown
from experiments.config.routers import router_label

EXPERTS = "routing.num_experts"
DODGE = 0.07
"""The distance between lines, in doublings of the number of experts, so that their bars do not hide each other."""
MOST_APART = 0.6
"""The largest distance between the first and the last line, which must stay nearer to their tick than to the next."""
PAPER_SIZES = ("XL", "XXL")


def draw_expert_scaling(_records: Records, table: pd.DataFrame, paper_values: bool = False) -> Drawing:
    """Returns the figure and its numbers, a row per setup, family and number of experts (0 for dense).

    Raises `MissingDataError` where no router was run with several numbers of experts in one setup.
    """
    kept = within_limits(families(table, [EXPERTS]), ("arms",))
    points = expert_points(kept.table)
    drawn = parts(points)
    is_split = len(drawn) > points["setup"].nunique()
    with paper_style():
        columns = COLUMNS if is_split else num_columns(len(drawn) + paper_values)
        height = height_beside_keys(drawn, PANEL_HEIGHT_INCHES) if is_split else PANEL_HEIGHT_INCHES
        figure, panels = panel_grid(len(drawn) + paper_values, columns, height)
        for axes, (title, ours) in zip(panels, drawn, strict=False):
            _draw_setup(axes, ours)
            title_panel(axes, title, columns)
            if is_split:
                keys_beside(axes, _keys(ours))
        share_limits_of_setups(panels[: len(drawn)], [ours["setup"].iloc[0] for _, ours in drawn])
        label_losses(panels)
        keys = [] if is_split else [(handle, shown(label)) for handle, label in _keys(points)]
        keys += seed_key(points[points["routing.name"] != "dense"])
        if paper_values:
            keys += _draw_paper(panels[-1], set(points["routing.name"]))
        if keys:
            place_keys(figure, keys)
        write_foot(figure, [*_foot(points, paper_values), *kept.notes])
    return Drawing(figure, points.drop(columns="variant"))


def expert_points(alike: pd.DataFrame) -> pd.DataFrame:
    """Returns the points of `families` along `num_experts`, without families of a single number of experts."""
    points = loss_points(alike, ["num_experts"], ["params_active", "params_total"])
    numbers = points.groupby(["setup", "arm"])["num_experts"].transform("nunique")
    is_family = (points["routing.name"] != "dense") & (numbers > 1)
    if not is_family.any():
        raise MissingDataError(
            "No router was run with several numbers of experts in one setup.", "Run some with: ecdit sweep scaling"
        )
    kept = points["setup"].isin(points.loc[is_family, "setup"])
    return points[kept & (is_family | (points["routing.name"] == "dense"))].reset_index(drop=True)


def _draw_setup(axes: Axes, points: pd.DataFrame) -> None:
    sparse, dense = points[points["routing.name"] != "dense"], points[points["routing.name"] == "dense"]
    for _, level in dense.iterrows():
        style = line_style("dense", level["variant"])
        axes.axhspan(level["loss_min"], level["loss_max"], color=style["color"], alpha=0.1, linewidth=0)
        axes.axhline(level["loss"], **style, linewidth=0.9)
    axes.set_xscale("log", base=2)
    lines = list(dict.fromkeys(sparse["arm"]))
    for place, arm in enumerate(lines):
        family = sparse[sparse["arm"] == arm]
        apart = 2 ** (min(DODGE, MOST_APART / len(lines)) * (place - (len(lines) - 1) / 2))
        draw_family(axes, family, [apart * number for number in family["num_experts"]])
    _expert_ticks(axes, sorted(set(sparse["num_experts"])))


def _expert_ticks(axes: Axes, numbers: Sequence[int]) -> None:
    named_ticks(axes, numbers, [str(number) for number in numbers])
    axes.margins(x=0.1)
    few_ticks(axes.yaxis, 5)
    axes.set_xlabel("Experts (number)")


def _keys(points: pd.DataFrame) -> list[Key]:
    is_dense = points["routing.name"] == "dense"
    return [*line_keys(points[is_dense]), *line_keys(points[~is_dense], points[~is_dense]["model.name"].iloc[0])]


def _draw_paper(axes: Axes, known: set[str]) -> list[Key]:
    """Draws the printed GenEval of XL and XXL. Returns keys of the sizes, and of routers that are not `known`."""
    scores = paper_scores()
    scores = scores[scores["size"].isin(PAPER_SIZES)]
    paper_panel(axes, "GenEval")
    axes.set_xscale("log", base=2)
    for (router, size), models in scores.groupby(["router", "size"], sort=False):
        style = line_style(str(router), 0) | {"marker": SIZE_MARKERS[str(size)]}
        axes.plot(models["num_experts"], models["geneval"], **style)
    _expert_ticks(axes, sorted(set(scores["num_experts"])))
    axes.set_ylabel("GenEval (%, higher is better)")
    unknown = [router for router in dict.fromkeys(scores["router"]) if router not in known]
    keys: list[Key] = [(Line2D([], [], **line_style(router, 0)), router_label(router)) for router in unknown]
    sizes = [(Line2D([], [], color=GREY, marker=SIZE_MARKERS[size], linestyle="none"), size) for size in PAPER_SIZES]
    return [*keys, *sizes]


def _foot(points: pd.DataFrame, paper_values: bool) -> list[str]:
    sparse = points[points["routing.name"] != "dense"]
    ranges = []
    for setup, runs in sparse.groupby("setup", sort=False)["params_active"]:
        texts = dict.fromkeys(significant(float(end)) for end in (runs.min(), runs.max()))
        ranges.append(f"{setup} {' to '.join(texts)}")
    printed = [f"Printed values: {SOURCES['scores']}."] if paper_values else []
    return [f"Activated parameters of the models with experts: {', '.join(ranges)}.", *printed]
