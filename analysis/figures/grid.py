"""What the figures of final losses share: panels in rows of three, keys above them, and the arms that form a line.

A *family* is the arms of one router that differ only in the settings on the axes of a figure (the number of experts,
say): one line. `paper_panel` gives the printed values a panel of their own, grey, because they are of other metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.arms import arm_list, with_arms
from analysis.style import (
    GREY,
    KEY_POINTS,
    TEXT_WIDTH_INCHES,
    key_text_inches,
    line_style,
    lowest_to_highest,
    marker_style,
    shown,
    wrapped,
)

MOST_COLUMNS = 3
PANEL_HEIGHT_INCHES = 2.0
PAPER_BACKGROUND = "#F2F2F2"
LEFT_OF_PANEL_INCHES = 0.75
"""What tick labels, the name of the axis and the space between two panels take; bold letters are wider by a tenth."""
USUAL_KEY_ROWS = 2
"""For which the heights of figures leave room."""
KEY_ROW_INCHES = 0.15
KEY_SPACING = {"columnspacing": 1.4, "handlelength": 2.6}
"""In units of the size of the font, as matplotlib counts them."""
LOSS_LABEL = "Validation loss (velocity MSE)"

Key = tuple[Artist, str]


def families(table: pd.DataFrame, free: Sequence[str]) -> pd.DataFrame:
    """The run table with arms named and numbered as if the settings `free` were equal; these move to `num_experts` etc.

    A setting `routing.num_experts` is kept as the column `num_experts`, the arm of the run as `full_arm`.
    """
    alike = table.assign(full_arm=table["arm"])
    for name in free:
        alike[name.rpartition(".")[2]] = table[name]
        alike[name] = 0
    return with_arms(alike)


def loss_points(runs: pd.DataFrame, along: Sequence[str], columns: Sequence[str] = ()) -> pd.DataFrame:
    """By setting, arm and `along`: `loss`, `loss_min`, `loss_max`, `num_seeds`, and the first of `columns`."""
    about = ["routing.name", "variant", "model.name", *columns]
    groups = runs.groupby(["setting", "arm", *along], sort=False)
    points = groups[about].first()
    points[["loss", "loss_min", "loss_max"]] = groups["val_loss"].agg(["mean", "min", "max"])
    points["num_seeds"] = groups["run"].nunique()
    return points.reset_index().sort_values(list(along), kind="stable", ignore_index=True)


def num_columns(num_panels: int) -> int:
    """How many panels stand beside each other: at most `MOST_COLUMNS`, and four in two rows of two."""
    return 2 if num_panels == 4 else min(num_panels, MOST_COLUMNS)


def panel_grid(num_panels: int, height_inches: float = PANEL_HEIGHT_INCHES) -> tuple[Figure, list[Axes]]:
    """A figure of text width with panels in rows of `num_columns`."""
    columns = num_columns(num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, height_inches * rows + 0.85), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[num_panels:]:
        unused.remove()
    return figure, axes[:num_panels]


def title_panel(axes: Axes, text: str, columns: int) -> None:
    """The bold title of one of `columns` panels beside each other, in lines that do not reach the next panel."""
    width = TEXT_WIDTH_INCHES / columns - LEFT_OF_PANEL_INCHES
    lines = [line for part in text.splitlines() for line in wrapped(part, width, mpl.rcParams["axes.titlesize"])]
    axes.set_title("\n".join(map(shown, lines)), loc="left", fontweight="bold")


def label_losses(panels: Sequence[Axes]) -> None:
    """`LOSS_LABEL` at the first panel of every row."""
    for axes in panels:
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(LOSS_LABEL)


def draw_family(axes: Axes, points: pd.DataFrame, x: Sequence[float]) -> None:
    """The line of one family at `x` with its markers, and a thin bar from the lowest to the highest seed."""
    first = points.iloc[0]
    style = line_style(first["routing.name"], first["variant"])
    for at, low, high in zip(x, points["loss_min"], points["loss_max"], strict=True):
        axes.plot([at, at], [low, high], color=style["color"], linewidth=0.7)
    marker = marker_style(first["routing.name"], first["variant"], first["model.name"])
    axes.plot(x, points["loss"], **marker | style)


def named_ticks(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Exactly these ticks on the x axis."""
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(places), list(names))


def family_keys(points: pd.DataFrame) -> list[Key]:
    """A sample of the line of every family, and what the bars are."""
    preset = points["model.name"].iloc[0]
    keys: list[Key] = []
    for label, router, variant in arm_list(points):
        sample: dict[str, Any] = marker_style(router, variant, preset) | line_style(router, variant)
        keys.append((Line2D([], [], **sample), shown(label)))
    return [*keys, *seed_key(points)]


def seed_key(points: pd.DataFrame) -> list[Key]:
    """What the bars go from and to; nothing with one seed."""
    num_seeds = points["num_seeds"]
    return [(Line2D([], [], color=GREY, linewidth=0.7), lowest_to_highest(num_seeds))] if num_seeds.max() > 1 else []


def place_keys(figure: Figure, keys: Sequence[Key], most_columns: int = 4) -> None:
    """The keys above all panels, in as many columns as the width holds; the figure grows by rows beyond the usual."""
    handles, labels = zip(*keys, strict=True)
    fitting = [number for number in range(1, most_columns + 1) if _keys_inches(labels, number) <= TEXT_WIDTH_INCHES]
    columns = max(fitting, default=1)
    more_rows = max(0, -(-len(keys) // columns) - USUAL_KEY_ROWS)
    figure.set_figheight(figure.get_figheight() + KEY_ROW_INCHES * more_rows)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, **KEY_SPACING)


def _keys_inches(labels: Sequence[str], num_columns: int) -> float:
    """Width of a legend that matplotlib fills column by column."""
    num_rows = -(-len(labels) // num_columns)
    widest = [max(map(key_text_inches, labels[i : i + num_rows])) for i in range(0, len(labels), num_rows)]
    handle = KEY_SPACING["handlelength"] + KEY_SPACING["columnspacing"] + 1.0
    return sum(widest) + len(widest) * handle * KEY_POINTS / 72


def paper_panel(axes: Axes, what: str) -> None:
    """Mark a panel as one of printed values of `what`."""
    axes.set_facecolor(PAPER_BACKGROUND)
    axes.set_title(f"EC-DIT as printed: {what}", loc="left")
