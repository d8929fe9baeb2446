"""What the figures of sampled metrics share: a grid of panels, keys of arms, sizes and spreads, and the foot.

Rows of the grid are studies or settings, columns metrics. Keys stand above and below the panels, never in them. The
foot says in small grey letters how the values were measured.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation, Transform

from analysis.arms import arm_list
from analysis.conditions import Measured, foot
from analysis.escaping import figure_text
from analysis.figures.grid import Key, place_keys
from analysis.style import (
    GREY,
    SIZE_MARKERS,
    TEXT_WIDTH_INCHES,
    line_style,
    lowest_to_highest,
    marker_style,
    paper_style,
    shown,
)

BAND_ALPHA = 0.12
FOOT_CHARACTERS = 145
"""In one line of the foot at the width of the text."""
SIDEWAYS_POINTS = 2.2
"""How far apart the points of two arms are drawn that cost the same."""


class Look(NamedTuple):
    """What differs between the figures: what a row of panels is, how high it is, and whether sizes have markers."""

    rows: Literal["study", "setting"]
    height_inches: float
    has_markers: bool


class Printed(NamedTuple):
    """The paper's values: who draws them, and where they were printed."""

    draw: Callable[[Axes], None]
    source: str


def draw_panels(
    points: pd.DataFrame,
    panels: Sequence[Measured],
    look: Look,
    draw: Callable[[Axes, pd.DataFrame, Measured], None],
    printed: Printed | None = None,
) -> Figure:
    """A panel for each of `panels` and each row, filled by `draw(axes, its points, its measurement)`.

    `printed` adds a panel of the paper's values at the right of the first row; the foot says where they are from.
    """
    names = list(dict.fromkeys(points[look.rows]))
    one_size = points["model.name"].iloc[0] if points["model.name"].nunique() == 1 else ""
    with paper_style():
        size = (TEXT_WIDTH_INCHES, look.height_inches * len(names) + 0.85)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(names), len(panels) + bool(printed), squeeze=False)
        if printed:
            printed.draw(grid[0, -1])
            for unused in grid[1:, -1]:
                unused.remove()
        for row, name in enumerate(names):
            grid[row, 0].set_title(shown(name or one_size), loc="left", fontweight="bold")
            for axes, measured in zip(grid[row], panels, strict=False):
                mine = (points[look.rows] == name) & (points["metric"] == measured.metric.name)
                draw(axes, points[mine], measured)
                if (points.loc[mine, "value"] == 0).all():
                    _above_zero(axes, points.loc[mine, "high"])
                axes.set_ylabel(measured.metric.label)
        place_keys(figure, [*_arm_keys(points, look), *_size_keys(points, look), *_spread_keys(points, look)])
        write_foot(figure, [*foot(panels), *([f"Printed values: {printed.source}."] if printed else [])])
    return figure


def _above_zero(axes: Axes, highs: pd.Series[float]) -> None:
    """Where every value is 0: an axis around it would show values that there are not."""
    top = 1.1 * max([1.0, *highs.dropna()])
    axes.set_ylim(-0.05 * top, top)


def draw_arm_curve(axes: Axes, points: pd.DataFrame, x: pd.Series[float]) -> None:
    """The line of one arm at `x`, with a band from `low` to `high` where known; a single point has a bar."""
    style = line_style(points["routing.name"].iloc[0], points["variant"].iloc[0])
    if len(points) == 1:
        _draw_spreads(axes, points, x, 0)
    axes.fill_between(x, points["low"], points["high"], color=style["color"], alpha=BAND_ALPHA, linewidth=0)
    axes.plot(x, points["value"], **style, marker=".", markersize=4)


def draw_arm_points(axes: Axes, points: pd.DataFrame, x: pd.Series[float], sideways_points: float = 0) -> None:
    """A thin line from size to size, the error bars and the markers of one arm."""
    router, variant = points["routing.name"].iloc[0], points["variant"].iloc[0]
    moved = _moved(axes, sideways_points)
    axes.plot(x, points["value"], **line_style(router, variant) | {"linewidth": 0.8, "zorder": 1}, transform=moved)
    _draw_spreads(axes, points, x, sideways_points)
    for at, value, preset in zip(x, points["value"], points["model.name"], strict=True):
        axes.plot(at, value, **marker_style(router, variant, preset), transform=moved)


def _draw_spreads(axes: Axes, points: pd.DataFrame, x: pd.Series[float], sideways_points: float) -> None:
    """A thin bar from low to high at each point, in the dashes of the arm."""
    style = line_style(points["routing.name"].iloc[0], points["variant"].iloc[0]) | {"linewidth": 0.7}
    for at, low, high in zip(x, points["low"], points["high"], strict=True):
        axes.plot([at, at], [low, high], **style, transform=_moved(axes, sideways_points))
    for end in ("low", "value", "high"):
        axes.update_datalim(list(zip(x, points[end], strict=True)))  # which moved lines do not do


def _moved(axes: Axes, sideways_points: float) -> Transform:
    """Data, shifted by a distance on the page."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(sideways_points / 72, 0, figure.dpi_scale_trans)


def sideways(arms: Sequence[tuple[str, str, int]], label: str) -> float:
    """Points by which the arm called `label` is moved, so that arms of equal cost lie side by side."""
    place = [arm[0] for arm in arms].index(label)
    return SIDEWAYS_POINTS * (place - (len(arms) - 1) / 2)


def write_foot(figure: Figure, lines: Sequence[str]) -> None:
    """`lines` below everything, wrapped at the width of the text."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, FOOT_CHARACTERS)]
    figure.supxlabel("\n".join(map(figure_text, wrapped)), x=0.01, ha="left", fontsize=6, color=GREY, linespacing=1.35)


def _arm_keys(points: pd.DataFrame, look: Look) -> list[Key]:
    """A sample of the line of every arm, with the marker of the first size."""
    preset = points["model.name"].iloc[0]
    keys: list[Key] = []
    for label, router, variant in arm_list(points):
        marker = marker_style(router, variant, preset) if look.has_markers else {}
        keys.append((Line2D([], [], **marker | line_style(router, variant)), shown(label)))
    return keys


def _size_keys(points: pd.DataFrame, look: Look) -> list[Key]:
    """The marker of every size, where there are several."""
    sizes = list(dict.fromkeys(points["model.name"]))
    keys: list[Key] = [
        (Line2D([], [], color=GREY, marker=SIZE_MARKERS[size], linestyle="none"), size) for size in sizes
    ]
    return keys if look.has_markers and len(keys) > 1 else []


def _spread_keys(points: pd.DataFrame, look: Look) -> list[Key]:
    """What the bars or bands go from and to."""
    num_seeds = points.loc[points["spread"] == "seeds", "num_seeds"]
    texts = [] if num_seeds.empty else [lowest_to_highest(num_seeds)]
    if (points["spread"] == "images").any():
        texts.append("95% interval over images, one seed")
    bar, band = Line2D([], [], color=GREY, linewidth=0.7), Patch(color=GREY, alpha=0.25, linewidth=0)
    return [(bar if look.has_markers else band, text) for text in texts]
