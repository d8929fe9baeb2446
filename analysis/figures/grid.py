"""Shared parts of the figures of final losses: panels in rows of three, legend keys above them, and lines of arms.

A *family* is the arms of one router that differ only in the settings on the axes of a figure, such as the number of
experts; a figure draws it as one line. `paper_panel` marks a panel of printed values by a grey background, because they
are of other metrics and must not be compared in level.
"""

from __future__ import annotations

from collections.abc import Sequence

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
"""The part of a panel's width that a title cannot use: tick and axis labels, the gap, and some for bold letters."""
USUAL_KEY_ROWS = 2
"""The rows of legend keys for which the heights of figures already leave room."""
KEY_ROW_INCHES = 0.15
KEY_SPACING = {"columnspacing": 1.4, "handlelength": 2.6}
"""Spacing of the legend in units of its font size, as matplotlib counts it."""
LOSS_LABEL = "Validation loss (velocity MSE)"

Key = tuple[Artist, str]


def families(table: pd.DataFrame, free: Sequence[str]) -> pd.DataFrame:
    """Returns the run table with its arms named and numbered as if the settings `free` were equal in all runs.

    Runs that differ only in `free` thereby become one arm, the family. The values of a setting such as
    `routing.num_experts` are kept in the column `num_experts`, and the original name of the arm in `full_arm`.
    """
    alike = table.assign(full_arm=table["arm"])
    for name in free:
        alike[name.rpartition(".")[2]] = table[name]
        alike[name] = 0
    return with_arms(alike)


def loss_points(runs: pd.DataFrame, along: Sequence[str], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Returns a row for each setup, arm and value of `along`: the final loss over seeds, and the first of `columns`.

    The columns of the loss are `loss` (the mean), `loss_min`, `loss_max` and `num_seeds`.
    """
    about = ["routing.name", "variant", "model.name", *columns]
    groups = runs.groupby(["setup", "arm", *along], sort=False)
    points = groups[about].first()
    points[["loss", "loss_min", "loss_max"]] = groups["val_loss"].agg(["mean", "min", "max"])
    points["num_seeds"] = groups["run"].nunique()
    return points.reset_index().sort_values(list(along), kind="stable", ignore_index=True)


def num_columns(num_panels: int) -> int:
    """Returns the number of panels in a row: at most `MOST_COLUMNS`, and 2 for four panels, which fill two rows."""
    return 2 if num_panels == 4 else min(num_panels, MOST_COLUMNS)


def panel_grid(
    num_panels: int, columns: int | None = None, height_inches: float = PANEL_HEIGHT_INCHES
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of text width, and its panels in rows of `columns`, by default `num_columns`."""
    columns = columns or num_columns(num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, height_inches * rows + 0.85), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[num_panels:]:
        unused.remove()
    return figure, axes[:num_panels]


def title_panel(axes: Axes, text: str, columns: int) -> None:
    """Sets the bold title of one of `columns` panels in a row, wrapped so that it does not reach the next panel."""
    width = TEXT_WIDTH_INCHES / columns - LEFT_OF_PANEL_INCHES
    lines = [line for part in text.splitlines() for line in wrapped(part, width, mpl.rcParams["axes.titlesize"])]
    axes.set_title("\n".join(map(shown, lines)), loc="left", fontweight="bold")


def label_losses(panels: Sequence[Axes]) -> None:
    """Labels the y axis of the first panel in every row with `LOSS_LABEL`."""
    for axes in panels:
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(LOSS_LABEL)


def draw_family(axes: Axes, points: pd.DataFrame, x: Sequence[float]) -> None:
    """Draws the line of one family at `x`, with markers and a thin bar from the lowest to the highest seed."""
    first = points.iloc[0]
    style = line_style(first["routing.name"], first["variant"])
    for at, low, high in zip(x, points["loss_min"], points["loss_max"], strict=True):
        axes.plot([at, at], [low, high], color=style["color"], linewidth=0.7)
    marker = marker_style(first["routing.name"], first["variant"], first["model.name"])
    axes.plot(x, points["loss"], **marker | style)


def named_ticks(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Puts ticks on the x axis at exactly these places, with these names and without minor ticks."""
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(places), list(names))


def family_keys(points: pd.DataFrame) -> list[Key]:
    """Returns the legend keys: a sample of the line of every family, and what the bars show."""
    keys = line_keys(points, points["model.name"].iloc[0])
    return [*((handle, shown(label)) for handle, label in keys), *seed_key(points)]


def line_keys(points: pd.DataFrame, preset: str | None = None) -> list[Key]:
    """Returns a key for the line of every arm in `points`, in words, with its marker where a `preset` is given.

    An empty preset stands for the marker of the router.
    """
    keys: list[Key] = []
    for label, router, variant in arm_list(points):
        marker = {} if preset is None else marker_style(router, variant, preset)
        keys.append((Line2D([], [], **marker | line_style(router, variant)), label))
    return keys


def seed_key(points: pd.DataFrame) -> list[Key]:
    """Returns the legend key that explains the bars over seeds, or no key where every point has one seed."""
    num_seeds = points["num_seeds"]
    return [(Line2D([], [], color=GREY, linewidth=0.7), lowest_to_highest(num_seeds))] if num_seeds.max() > 1 else []


def place_keys(figure: Figure, keys: Sequence[Key], most_columns: int = 4) -> None:
    """Places the legend above all panels, in as many columns as the text width holds.

    The figure grows in height for rows of keys beyond `USUAL_KEY_ROWS`.
    """
    handles, labels = zip(*keys, strict=True)
    fitting = [number for number in range(1, most_columns + 1) if _keys_inches(labels, number) <= TEXT_WIDTH_INCHES]
    columns = max(fitting, default=1)
    more_rows = max(0, -(-len(keys) // columns) - USUAL_KEY_ROWS)
    figure.set_figheight(figure.get_figheight() + KEY_ROW_INCHES * more_rows)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, **KEY_SPACING)


def _keys_inches(labels: Sequence[str], num_columns: int) -> float:
    """Estimates the width in inches of a legend with `num_columns`, which matplotlib fills column by column."""
    num_rows = -(-len(labels) // num_columns)
    widest = [max(map(key_text_inches, labels[i : i + num_rows])) for i in range(0, len(labels), num_rows)]
    handle = KEY_SPACING["handlelength"] + KEY_SPACING["columnspacing"] + 1.0
    return sum(widest) + len(widest) * handle * KEY_POINTS / 72


def paper_panel(axes: Axes, what: str) -> None:
    """Marks a panel, by its background and title, as one of printed values of `what`."""
    axes.set_facecolor(PAPER_BACKGROUND)
    axes.set_title(f"EC-DIT as printed: {what}", loc="left")
