"""`expert-classes` shows which experts process the images of which class, at a few times and layers.

The figure is that of DiT-MoE (arXiv 2407.11633, section 4.4), which found that experts prefer positions and times and
do not care about the class. For one run of each router, heat maps show the share of the assignments of a class that an
expert gets, as a multiple of the even share 1/E, which is white. A class of `shapes` is shown by its attributes: the
kind of the scene, and the colour and the shape of its first object. Experts that do not care about the class are rows
of one colour.

Legend: E experts, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from analysis.conditions import WEIGHTS_TEXTS
from analysis.escaping import figure_text
from analysis.expert_findings import ExpertFinding, findings_of_run
from analysis.figures.panels import write_foot
from analysis.load_records import Records
from analysis.maps import MappedRun, SceneMaps, one_per_router, scene_maps, spread
from analysis.style import GREY, TEXT_WIDTH_INCHES, Drawing, paper_style
from experiments.records.routing_map_row import RoutingMapRow
from experiments.text import printable

COLORS = "RdBu_r"
MOST_ROWS = 6
MOST_EXPERT_TICKS = 4
MOST_CLASS_TICKS = 32
LABEL_CHARACTERS = 18
PANEL_INCHES, NAMES_INCHES = 0.62, 0.95
FOOT_INCHES, FOOT_CHARACTERS = 0.13, 110
"""Height of a line of the foot, and at least so many characters that it has."""
LEAST_WIDTH = 4
"""The width of a panel of few classes, in classes, below which its names would not fit."""
WITHOUT_CLASSES = "its routing measured by class"


@dataclass(frozen=True)
class _ClassRow:
    """One row of panels: what a layer does at one time, or over all times."""

    maps: SceneMaps
    row: RoutingMapRow

    @property
    def loads(self) -> dict[str, dict[str, list[float]]]:
        """Returns the share of each expert by attribute and its value."""
        return self.row.load_by_class or {}

    @property
    def label(self) -> str:
        """Returns what the axis counts, and the layer and the time, in three lines."""
        when = "all t" if self.row.time is None else f"t = {self.row.time:.2g}"
        return f"expert\n(layer {self.row.layer},\n{when})"

    def even_shares_EC(self, attribute: str) -> NDArray[np.float64]:
        """Returns the share by expert and class as a multiple of the even share."""
        return len(self.row.load) * np.array(list(self.loads[attribute].values())).T


def draw_expert_classes(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers by layer, time, class and expert. Raises `MissingDataError` without any."""
    found = one_per_router(table, _maps_by_class, WITHOUT_CLASSES)
    most = max(1, MOST_ROWS // len(found))
    blocks = [_rows(maps, most) for maps in found]
    numbers = pd.concat([_numbers(row) for rows in blocks for row in rows], ignore_index=True)
    largest = float(numbers["times_even_share"].quantile(0.995))
    scale = TwoSlopeNorm(1.0, 0.0, max(2.0, math.ceil(largest * 2) / 2))
    with paper_style():
        heights = [PANEL_INCHES * len(rows) + NAMES_INCHES + 0.35 for rows in blocks]
        feet = [_foot(maps) for maps in found]
        foot_inches = sum(FOOT_INCHES * math.ceil(len(foot) / FOOT_CHARACTERS) for foot in feet)
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, sum(heights) + 0.75 + foot_inches), layout="constrained")
        parts = figure.subfigures(len(blocks) + 1, 1, height_ratios=[*heights, 0.45], squeeze=False)[:, 0]
        for part, rows in zip(parts[:-1], blocks, strict=True):
            _draw_block(part, rows, scale)
        _draw_scale(parts[-1], scale)
        write_foot(figure, feet)
    return Drawing(figure, numbers)


def _maps_by_class(run: MappedRun) -> SceneMaps | None:
    maps = scene_maps(run)
    return maps if maps is not None and any(row.load_by_class for row in maps.rows) else None


def _rows(maps: SceneMaps, most: int) -> list[_ClassRow]:
    """Chooses at most `most` rows: the first and the last layer, each over all times and at its outermost times."""
    layers = [layer for layer in maps.layers if any(row.layer == layer and row.load_by_class for row in maps.rows)]
    chosen = [layers[place] for place in spread(len(layers), 2 if most >= 2 else 1)]
    each = max(1, most // len(chosen))
    rows = []
    for layer in chosen:
        whole = maps.over_all_times(layer)
        by_time = [row for row in maps.by_time(layer) if row.load_by_class]
        ends = [by_time[place] for place in spread(len(by_time), 2)] if each >= 3 else []
        rows += [_ClassRow(maps, row) for row in (whole, *ends) if row is not None and row.load_by_class]
    return rows


def _draw_block(part: SubFigure, rows: list[_ClassRow], scale: TwoSlopeNorm) -> None:
    """Draws the panels of one run: a row for each layer and time, a column for each attribute of the class."""
    run, attributes = rows[0].maps.run, list(rows[0].loads)
    title = printable(f"{run.label}: {run.name}")
    part.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=8, parse_math=False)
    widths = [max(LEAST_WIDTH, len(rows[0].loads[name])) for name in attributes]
    grid = part.subplots(len(rows), len(attributes), squeeze=False, width_ratios=widths)
    for place, row in enumerate(rows):
        for axes, attribute in zip(grid[place], attributes, strict=True):
            is_last = place == len(rows) - 1
            _draw_panel(axes, row.even_shares_EC(attribute), list(row.loads[attribute]), scale, is_last)
            axes.tick_params(labelleft=axes is grid[place, 0])
        grid[place, 0].set_ylabel(row.label, rotation=0, ha="right", va="center", labelpad=8)
    for axes, attribute in zip(grid[0], attributes, strict=True):
        axes.set_title(f"By {attribute}" if len(attributes) > 1 else "By class", loc="left", fontsize=7)


def _draw_panel(
    axes: Axes, shares_EC: NDArray[np.float64], names: list[str], scale: TwoSlopeNorm, is_named: bool
) -> None:
    """Draws a heat map with experts down and classes across."""
    axes.imshow(shares_EC, cmap=COLORS, norm=scale, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(0, len(shares_EC), math.ceil(len(shares_EC) / MOST_EXPERT_TICKS)))
    shown = spread(len(names), MOST_CLASS_TICKS)
    texts = [figure_text(names[place].replace("_", " "))[:LABEL_CHARACTERS] for place in shown]
    axes.set_xticks(shown, texts if is_named else [""] * len(shown), rotation=90)
    axes.grid(visible=False)


def _draw_scale(part: SubFigure, scale: TwoSlopeNorm) -> None:
    axes = part.subplots(1, 1)
    bar = part.colorbar(ScalarMappable(scale, COLORS), axes, orientation="horizontal", aspect=40)
    bar.set_label("Share of the assignments of a class (1: even, 1/E)", color=GREY)


def _foot(maps: SceneMaps) -> str:
    """Says how a block was measured."""
    row = maps.rows[0]
    what = "true scenes" if row.source == "scenes" else "sampled images"
    weights = WEIGHTS_TEXTS[row.weights]
    about = f"{maps.run.label}: {row.num_images:,} {what}, {weights} weights after {row.images_seen:,} images."
    found = "; ".join(_said(each) for each in findings_of_run(maps))
    return f"{about} What DiT-MoE found, on this run: {found}." if found else about


def _said(each: ExpertFinding) -> str:
    """Says a finding with its verdict, and our value with its interval, in percent of log E."""
    if each.ours is None or each.ours.low is None or each.ours.high is None:
        return f"{each.form.finding}: {each.verdict}, {each.reason}"
    ends = f"{100 * each.ours.low:.2f} to {100 * each.ours.high:.2f}"
    return f"{each.form.finding}: {each.verdict} ({100 * each.ours.mean:.2f}% of log E, {ends})"


def _numbers(row: _ClassRow) -> pd.DataFrame:
    """Returns a row for each cell of a heat map."""
    num_experts, run = len(row.row.load), row.maps.run
    about = {"router": run.router, "run": run.name, "layer": row.row.layer, "t": row.row.time}
    return pd.DataFrame(
        [
            {
                **about, "attribute": attribute, "class": name, "expert": expert, "share": share,
                "times_even_share": num_experts * share,
            }
            for attribute, loads in row.loads.items()
            for name, load_E in loads.items()
            for expert, share in enumerate(load_E)
        ]
    )  # fmt: skip
