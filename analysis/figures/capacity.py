"""`capacity` shows the final validation loss against the size of the routing group, by capacity factor f_c.

Each expert has C = S f_c / E slots for a group of S tokens. There is one panel per setup and router. Where no router
was run with several groups, there is one panel per setup with the loss of each router against f_c, or one per family
of routers where these are many. In a sparse layer
f_c = 2 costs twice the feed-forward FLOPs of f_c = 1, so its gain is not free, whereas a larger group adds no FLOPs.
Points are means over seeds and bars go from the lowest to the highest. With `paper_values` a panel shows the FID of
EC-DIT's own ablation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.arms import GROUPS_IN_WORDS, group_order, group_text
from analysis.figures.family_panels import COLUMNS, height_beside_keys, keys_beside, parts, share_limits_of_setups
from analysis.figures.grid import (
    PANEL_HEIGHT_INCHES,
    Key,
    draw_family,
    families,
    family_keys,
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
from analysis.paper_values import CAPACITIES, SOURCES
from analysis.router_looks import DASHES
from analysis.style import FILLS, GREY, Drawing, few_ticks, paper_style, router_color, shown

FACTOR, GROUP = "routing.capacity_factor", "routing.group_images"
MARKERS = ("o", "s", "^", "D", "v", "P")
DODGE = 0.05
"""The distance between the lines of two routers, as a share of that between two capacity factors."""


def draw_capacity(_records: Records, table: pd.DataFrame, paper_values: bool = False) -> Drawing:
    """Returns the figure and its numbers, a row per setup, family, capacity factor and group.

    Raises `MissingDataError` where no router was run with several capacity factors or groups in one setup.
    """
    points = capacity_points(table)
    over_groups = _has_groups(points)
    shown = _by_arm(points) if over_groups else parts(points)
    is_split = not over_groups and len(shown) > points["setup"].nunique()
    printed = {cell.capacity_factor for cell in CAPACITIES} if paper_values else set()
    factors = sorted({*points["capacity_factor"], *printed})
    with paper_style():
        columns = COLUMNS if is_split else num_columns(len(shown) + paper_values)
        height = height_beside_keys(shown, PANEL_HEIGHT_INCHES) if is_split else PANEL_HEIGHT_INCHES
        figure, axes = panel_grid(len(shown) + paper_values, columns, height)
        for panel, (title, family) in zip(axes, shown, strict=False):
            (_draw_over_groups if over_groups else _draw_over_factors)(panel, family, factors)
            title_panel(panel, title, columns)
            if is_split:
                keys_beside(panel, line_keys(family, family["model.name"].iloc[0]))
        if is_split:
            share_limits_of_setups(axes[: len(shown)], [family["setup"].iloc[0] for _, family in shown])
        label_losses(axes)
        if paper_values:
            _draw_paper(axes[-1], factors)
        routers = [] if over_groups else seed_key(points) if is_split else family_keys(points)
        if keys := [*routers, *_keys(points, factors if paper_values or over_groups else (), not routers)]:
            place_keys(figure, keys)
        write_foot(figure, [f"Printed values: {SOURCES['capacity']}, in sampling."] if paper_values else [])
    return Drawing(figure, points.drop(columns="variant"))


def capacity_points(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the `loss_points` of families with several capacity factors or groups; groups are given in words."""
    sparse = table[(table["routing.name"] != "dense") & table[FACTOR].notna()]
    if sparse.empty:
        raise MissingDataError("No run has a capacity factor.", "Run some with: ecdit sweep capacity")
    runs = families(sparse, [FACTOR, GROUP])
    sizes = [group_order(group) for group in runs["group_images"]]
    runs["group_images"], runs["group_order"] = [_group_name(group) for group in runs["group_images"]], sizes
    points = loss_points(runs, ["capacity_factor", "group_order", "group_images"], ["flops_per_image"])
    cells = points.groupby(["setup", "arm"])["loss"].transform("size")
    if not (cells > 1).any():
        raise MissingDataError(
            "No router was run with several capacity factors or routing groups in one setup.",
            "Run some with: ecdit sweep capacity",
        )
    return points[cells > 1].reset_index(drop=True)


def _group_name(group: object) -> str:
    """Names a routing group `1`, `4` or `whole batch`, or `none` for a router without groups."""
    if group is None or group != group:
        return "none"
    return group_text(group) if group in GROUPS_IN_WORDS else f"{group}"


def _by_arm(points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Returns a title and the points for each setup and arm."""
    groups = points.groupby(["setup", "arm"], sort=False)
    return [(f"{shown(str(setup))}:\n{shown(str(arm))}", family) for (setup, arm), family in groups]


def _draw_over_groups(axes: Axes, points: pd.DataFrame, factors: Sequence[float]) -> None:
    groups = list(points.sort_values("group_order")["group_images"].unique())
    color = router_color(points["routing.name"].iloc[0])
    for factor, line in points.groupby("capacity_factor"):
        x = [groups.index(name) for name in line["group_images"]]
        for at, low, high in zip(x, line["loss_min"], line["loss_max"], strict=True):
            axes.plot([at, at], [low, high], color=color, linewidth=0.7)
        axes.plot(x, line["loss"], **_look(factors.index(float(str(factor)))), color=color)
    _ticks(axes, groups, "Routing group (images)")


def _draw_over_factors(axes: Axes, points: pd.DataFrame, _factors: Sequence[float]) -> None:
    """Draws a line for each router and number of experts, a little apart so that bars do not hide each other."""
    names, arms = sorted(set(points["capacity_factor"])), list(dict.fromkeys(points["arm"]))
    for place, arm in enumerate(arms):
        line = points[points["arm"] == arm].sort_values("capacity_factor")
        apart = DODGE * (place - (len(arms) - 1) / 2)
        draw_family(axes, line, [names.index(factor) + apart for factor in line["capacity_factor"]])
    _ticks(axes, [f"{name:g}" for name in names], "Capacity $f_c$ (slots per token)")


def _ticks(axes: Axes, names: Sequence[str], label: str) -> None:
    named_ticks(axes, range(len(names)), names)
    axes.margins(x=0.12)
    few_ticks(axes.yaxis, 5)
    axes.set_xlabel(label)


def _has_groups(points: pd.DataFrame) -> bool:
    """Says whether any family has several groups; the figure then shows groups, with a line for each factor."""
    return bool((points.groupby(["setup", "arm"])["group_images"].nunique() > 1).any())


def _look(i: int) -> dict[str, Any]:
    dashes = DASHES[i % len(DASHES)]
    marker = {"marker": MARKERS[i % len(MARKERS)], "fillstyle": FILLS[i % 2]}
    return {**marker, "linestyle": (0, dashes) if dashes else "-"}


def _draw_paper(axes: Axes, factors: Sequence[float]) -> None:
    """Draws the printed FID of EC-XXL-16E by group and f_c."""
    cells = pd.DataFrame(CAPACITIES)
    tokens = sorted(set(cells["group_tokens"]))
    paper_panel(axes, "FID")
    for factor, line in cells.groupby("capacity_factor"):
        look = _look(factors.index(float(str(factor))))
        axes.plot([tokens.index(size) for size in line["group_tokens"]], line["fid"], **look, color=GREY)
    named_ticks(axes, range(len(tokens)), [str(size) for size in tokens])
    axes.margins(x=0.12)
    few_ticks(axes.yaxis, 5)
    axes.set_xlabel("Routing group (tokens)")
    axes.set_ylabel("FID (lower is better)")


def _keys(points: pd.DataFrame, factors: Sequence[float], with_seeds: bool) -> list[Key]:
    """Returns a key for every capacity factor, and for the bars unless the keys of routers already explain them."""
    looks = [(Line2D([], [], **_look(i), color=GREY), f"$f_c$ = {factor:g}") for i, factor in enumerate(factors)]
    return [*looks, *(seed_key(points) if with_seeds else [])]
