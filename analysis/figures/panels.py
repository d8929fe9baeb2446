"""Shared parts of the figures of sampled metrics: a grid of panels, legend keys of arms, sizes and spreads, and a foot.

The rows of the grid are studies or setups, and its columns are metrics. Where routers are many, each row is drawn once
for every family of them. The legend stands above the panels, or beside them, where it covers no data. The foot says in
small grey letters how the values were measured.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import StrMethodFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from analysis.arms import arm_list
from analysis.conditions import MetricRows, foot
from analysis.escaping import figure_text
from analysis.figures.family_panels import family_panels, keys_beside, share_limits, with_marks
from analysis.figures.grid import Key, line_keys, place_keys
from analysis.router_looks import router_look
from analysis.style import (
    GREY,
    SIZE_MARKERS,
    TEXT_WIDTH_INCHES,
    few_ticks,
    is_wide,
    line_style,
    log_axis,
    lowest_to_highest,
    marker_style,
    paper_style,
    shown,
)

BAND_ALPHA = 0.12
FOOT_CHARACTERS = 145
"""The number of characters that fit on one line of the foot at text width."""
USUAL_FOOT_LINES = 4
"""The lines of a foot for which the heights of figures already leave room."""
FOOT_LINE_INCHES = 0.115
SIDEWAYS_POINTS = 2.2
"""The horizontal distance, in points, between markers of arms of equal cost, which would hide each other."""


class Look(NamedTuple):
    """Options that differ between figures: what a row of panels is, its height, and whether sizes have markers."""

    rows: Literal["study", "setup"]
    height_inches: float
    has_markers: bool


class Printed(NamedTuple):
    """The paper's values: the function that draws them into a panel, and where in the paper they were printed."""

    draw: Callable[[Axes], None]
    source: str


def draw_panels(
    points: pd.DataFrame,
    panels: Sequence[MetricRows],
    look: Look,
    draw: Callable[[Axes, pd.DataFrame, MetricRows], None],
    printed: Printed | None = None,
) -> Figure:
    """Draws a grid with a row for each study or setup and a column for each of `panels`.

    Each panel is filled by `draw(axes, its points, its measurement)`, where the points have a column `aside`: how far
    the marks of an arm are moved so that those of equal cost lie side by side. `printed` adds a panel of the paper's
    values at the right of the first row, and the foot says where they were printed. A panel without points says so.
    """
    names, families = list(dict.fromkeys(points[look.rows])), family_panels(points["routing.name"])
    one_size = points["model.name"].iloc[0] if points["model.name"].nunique() == 1 else ""
    points = with_marks(points, families)
    with paper_style():
        routers = {name: set(ours) for name, ours in points.groupby(look.rows)["routing.name"]}
        rows = [(name, family) for name in names for family in families if family.routers & routers[name]]
        size = (TEXT_WIDTH_INCHES, look.height_inches * len(rows) + 0.85)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(rows), len(panels) + bool(printed), squeeze=False)
        if printed:
            printed.draw(grid[0, -1])
            for unused in grid[1:, -1]:
                unused.remove()
        for row, (name, family) in enumerate(rows):
            grid[row, 0].set_title(shown(family.named(name or one_size)), loc="left", fontweight="bold")
            shared = _with_asides(family.of(points))
            for axes, measured in zip(grid[row], panels, strict=False):
                mine = shared[(shared[look.rows] == name) & (shared["metric"] == measured.metric.name)]
                if mine.empty:
                    _say_not_measured(axes)
                    continue
                draw(axes, mine, measured)
                if (mine["value"] == 0).all():
                    _above_zero(axes, mine["high"])
                axes.set_ylabel(measured.metric.label)
            if len(families) > 1:
                keys_beside(grid[row, len(panels) - 1], _arm_keys(shared[shared[look.rows] == name], look))
        for name in names:
            ours = [row for row, (its, _) in enumerate(rows) if its == name]
            for column in range(len(panels)):
                share_limits([axes for axes in grid[ours, column] if axes.axison])
        arms = [(handle, shown(label)) for handle, label in _arm_keys(points, look)] if len(families) == 1 else []
        if keys := [*arms, *_size_keys(points, look), *_spread_keys(points, look)]:
            place_keys(figure, keys)
        write_foot(figure, [*foot(panels), *([f"Printed values: {printed.source}."] if printed else [])])
    return figure


def draw_along(points: pd.DataFrame, panels: Sequence[MetricRows], along: str, label: str, num_ticks: int) -> Figure:
    """Draws the curve of every arm against the column `along` of `points`, one row of panels per setup.

    `label` names the axis of all panels. They share its limits, and have about `num_ticks` ticks.
    """
    logarithmic, values = logarithmic_metrics(panels, points), points[along]
    margin = 0.05 * (values.max() - values.min())

    def draw(axes: Axes, mine: pd.DataFrame, measured: MetricRows) -> None:
        for _, arm in mine.groupby("arm", sort=False):
            draw_arm_curve(axes, arm, arm[along])
        few_ticks(axes.xaxis, num_ticks)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlim(values.min() - margin, values.max() + margin)
        if measured.metric.name in logarithmic:
            log_axis(axes, "y", mine["value"])
        axes.set_xlabel(label)

    return draw_panels(points, panels, Look(rows="setup", height_inches=1.9, has_markers=False), draw)


def _say_not_measured(axes: Axes) -> None:
    """Writes into a panel without points that its metric was not measured there, and hides its axes."""
    axes.annotate(
        "not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=6.5, color=GREY
    )
    axes.set_axis_off()


def _above_zero(axes: Axes, highs: pd.Series[float]) -> None:
    """Sets the limits of a panel in which every value is 0, so that the axis shows hardly any negative values.

    Matplotlib's default limits would be symmetric about 0, but these metrics cannot be negative.
    """
    top = 1.1 * max([1.0, *highs.dropna()])
    axes.set_ylim(-0.05 * top, top)


def draw_arm_curve(axes: Axes, points: pd.DataFrame, x: pd.Series[float]) -> None:
    """Draws the line of one arm at `x`, with a band from `low` to `high` where known; a single point gets a bar."""
    style = line_style(points["routing.name"].iloc[0], points["variant"].iloc[0])
    if len(points) == 1:
        _draw_spreads(axes, points, x, 0)
    axes.fill_between(x, points["low"], points["high"], color=style["color"], alpha=BAND_ALPHA, linewidth=0)
    mark: dict[str, Any] = {"marker": ".", "markersize": 4}
    if not points["model.name"].iloc[0]:
        mark = {"marker": router_look(points["routing.name"].iloc[0]).marker, "markersize": 3}
    axes.plot(x, points["value"], **style, **mark)


def draw_arm_points(axes: Axes, points: pd.DataFrame, x: pd.Series[float], sideways_points: float = 0) -> None:
    """Draws one arm: a thin line from size to size, error bars and markers, moved sideways by points on the page."""
    router, variant = points["routing.name"].iloc[0], points["variant"].iloc[0]
    shift = moved(axes, sideways_points)
    axes.plot(x, points["value"], **line_style(router, variant) | {"linewidth": 0.8, "zorder": 1}, transform=shift)
    _draw_spreads(axes, points, x, sideways_points)
    for at, value, preset in zip(x, points["value"], points["model.name"], strict=True):
        axes.plot(at, value, **marker_style(router, variant, preset), transform=shift)


def _draw_spreads(axes: Axes, points: pd.DataFrame, x: pd.Series[float], sideways_points: float) -> None:
    """Draws a thin bar from `low` to `high` at each point, in the colour and dashes of the arm."""
    style = line_style(points["routing.name"].iloc[0], points["variant"].iloc[0]) | {"linewidth": 0.7}
    for at, low, high in zip(x, points["low"], points["high"], strict=True):
        axes.plot([at, at], [low, high], **style, transform=moved(axes, sideways_points))
    for end in ("low", "value", "high"):
        axes.update_datalim(list(zip(x, points[end], strict=True)))  # Shifted artists do not.


def moved(axes: Axes, sideways_points: float) -> Transform:
    """Returns the transform of data coordinates followed by a horizontal shift in points on the page."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(sideways_points / 72, 0, figure.dpi_scale_trans)


def logarithmic_metrics(panels: Sequence[MetricRows], points: pd.DataFrame) -> set[str]:
    """Returns the names of the metrics whose axes are logarithmic, as the values of some setup span a wide range."""
    names = [each.metric.name for each in panels if each.metric.is_logarithmic_where_wide]
    spread = {name: points[points["metric"] == name].groupby("setup")["value"] for name in names}
    return {name for name, setups in spread.items() if any(is_wide(values) for _, values in setups)}


def _with_asides(points: pd.DataFrame) -> pd.DataFrame:
    """Adds the column `aside`: the points by which each arm is moved, so that arms of equal cost lie side by side."""
    labels = [label for label, _, _ in arm_list(points)]
    places = {label: SIDEWAYS_POINTS * (place - (len(labels) - 1) / 2) for place, label in enumerate(labels)}
    return points.assign(aside=points["arm"].map(places))


def write_foot(figure: Figure, lines: Sequence[str]) -> None:
    """Writes `lines` at the bottom of the figure, wrapped at text width, in place of what stands there.

    The figure grows in height for lines beyond `USUAL_FOOT_LINES`, which would otherwise squeeze its panels.
    """
    wrapped = [part for line in lines for part in textwrap.wrap(line, FOOT_CHARACTERS)]
    before, after = len(figure.get_supxlabel().splitlines()), len(wrapped)
    more = max(after - USUAL_FOOT_LINES, 0) - max(before - USUAL_FOOT_LINES, 0)
    figure.set_figheight(figure.get_figheight() + FOOT_LINE_INCHES * more)
    figure.supxlabel("\n".join(map(figure_text, wrapped)), x=0.01, ha="left", fontsize=6, color=GREY, linespacing=1.35)


def _arm_keys(points: pd.DataFrame, look: Look) -> list[Key]:
    """Returns a key for every arm: a sample of its line, with the marker of the first size where sizes have markers."""
    preset = points["model.name"].iloc[0]
    return line_keys(points, preset if look.has_markers or not preset else None)


def _size_keys(points: pd.DataFrame, look: Look) -> list[Key]:
    """Returns a key with the marker of every size, or no keys where there is only one size."""
    sizes = list(dict.fromkeys(points["model.name"]))
    if not look.has_markers or len(sizes) < 2:
        return []
    return [(Line2D([], [], color=GREY, marker=SIZE_MARKERS[size], linestyle="none"), size) for size in sizes]


def _spread_keys(points: pd.DataFrame, look: Look) -> list[Key]:
    """Returns the keys that explain what the bars or bands cover: seeds, or the 95% interval over images."""
    num_seeds = points.loc[points["spread"] == "seeds", "num_seeds"]
    texts = [] if num_seeds.empty else [lowest_to_highest(num_seeds)]
    if (points["spread"] == "images").any():
        texts.append("95% interval over images, one seed")
    bar, band = Line2D([], [], color=GREY, linewidth=0.7), Patch(color=GREY, alpha=0.25, linewidth=0)
    return [(bar if look.has_markers else band, text) for text in texts]
