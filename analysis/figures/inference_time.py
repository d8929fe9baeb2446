"""`inference-time` shows quality against measured seconds per image, and the overhead of routing over dense.

Each arm and size has one point: colour shows the router, the marker the size, and fill the arm (for example its number
of experts). Where routers are many, each family of them has a panel. Beside or below the points, bars show for every
arm the overhead over its dense baseline (`baselines.py`): the calculated one in activated parameters and in FLOPs,
which are executed ones where runs recorded them, and the measured one in time. Points are means over seeds, and error
bars go from the lowest to the highest.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.arms import arm_list
from analysis.baselines import baselines
from analysis.figures.family_panels import COLUMNS, family_panels, share_limits, with_marks
from analysis.figures.grid import MOST_COLUMNS, title_panel
from analysis.load_records import MissingDataError, Records
from analysis.run_table import INFERENCE
from analysis.scores import study_of
from analysis.style import (
    GREY,
    LIGHT_GREY,
    SIZE_MARKERS,
    TEXT_WIDTH_INCHES,
    Drawing,
    few_ticks,
    is_wide,
    line_style,
    log_axis,
    marker_style,
    paper_style,
    point_rows,
    router_color,
)

MEASURED_BY = "Measure it with: ecdit evaluate --metrics inference-time RUNS"
COSTS = {"params_active": "Activated parameters", "flops_per_image": "FLOPs per image", INFERENCE: "Measured time"}
BAR_STYLES: tuple[dict[str, Any], ...] = (
    {"facecolor": LIGHT_GREY},
    {"facecolor": "white", "edgecolor": GREY, "hatch": "/////", "linewidth": 0.4},
    {},
)
BAR_HEIGHT = 0.26
SCATTER_HEIGHT_INCHES = 2.4


def draw_inference_time(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers by setup and arm. Raises `MissingDataError` where no time was measured."""
    points = inference_points(table)
    arms, setups = arm_list(points), list(dict.fromkeys(points["setup"]))
    panels = family_panels(points["routing.name"])
    drawn = with_marks(points, panels)
    with paper_style():
        scatters, bars, figure = _axes(len(arms), len(setups), len(panels))
        for axes, panel in zip(scatters, panels, strict=True):
            _draw_points(axes, panel.of(drawn), panel.title or "Quality against inference time")
            if len(panels) > 1:
                few_ticks(axes.yaxis)
        share_limits(scatters)
        for i, (axes, setup) in enumerate(zip(bars, setups, strict=True)):
            _draw_bars(axes, drawn[drawn["setup"] == setup], arms, named=i % MOST_COLUMNS == 0)
            title = setup if len(setups) > 1 else "Overhead over dense"
            title_panel(axes, title, min(MOST_COLUMNS, max(2, len(setups))))
        _legend(figure, list(dict.fromkeys(points["model.name"])))
    return Drawing(figure, points.drop(columns="variant"))


def _axes(num_arms: int, num_setups: int, num_families: int) -> tuple[list[Axes], list[Axes], Figure]:
    """Returns the panels of points (one for each family), those of bars, and the figure.

    The points stand beside the bars of a single setup, or above the bars of several setups, which are in rows of at
    most `MOST_COLUMNS`.
    """
    bars_height = 0.34 * num_arms + 0.6
    if num_setups == 1:
        height = max(2.4, 1.8 * num_families, bars_height) + 0.4
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, height), layout="constrained")
        beside = figure.add_gridspec(num_families, 2, width_ratios=(1.15, 1))
        return (
            [figure.add_subplot(beside[i, 0]) for i in range(num_families)],
            [figure.add_subplot(beside[:, 1])],
            figure,
        )
    columns, rows = min(num_setups, MOST_COLUMNS), -(-num_setups // MOST_COLUMNS)
    scatter_columns = min(num_families, COLUMNS)
    scatter_rows = -(-num_families // scatter_columns)
    heights = [SCATTER_HEIGHT_INCHES * scatter_rows, *[bars_height] * rows]
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, sum(heights) + 0.6), layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=heights)
    bars = [figure.add_subplot(grid[1 + i // columns, i % columns]) for i in range(num_setups)]
    if num_families == 1:
        return [figure.add_subplot(grid[0, :])], bars, figure
    above = grid[0, :].subgridspec(scatter_rows, scatter_columns)
    places = [(i // scatter_columns, i % scatter_columns) for i in range(num_families)]
    return [figure.add_subplot(above[place]) for place in places], bars, figure


def inference_points(table: pd.DataFrame) -> pd.DataFrame:
    """Returns mean, lowest and highest time and loss of each arm and setup, and overheads over dense (0.2 is 20%)."""
    measured = table[table[INFERENCE].notna()]
    if measured.empty:
        raise MissingDataError("No run has a measured inference time.", MEASURED_BY)
    measured = _with_executed_flops(measured)
    about = ["routing.name", "routing.num_experts", "model.name", "arm_kind", "variant", *list(COSTS)[:2]]
    grouped = measured.groupby(["setup", "arm"], sort=False)
    points = grouped[about].first()
    for column in (INFERENCE, "val_loss"):
        points[[column, f"{column}_min", f"{column}_max"]] = grouped[column].agg(["mean", "min", "max"])
    points["num_seeds"] = grouped["run"].nunique()
    order = [(setup, arm) for setup, runs in measured.groupby("setup", sort=False) for arm, _, _ in arm_list(runs)]
    points = points.loc[order].reset_index()
    points["study"] = [study_of(*pair) for pair in zip(points["setup"], points["model.name"], strict=True)]
    baseline_of = {setup: baselines(runs) for setup, runs in measured.groupby("setup")}
    pairs = list(zip(points["setup"], points["arm"], strict=True))
    for column in COSTS:
        costs = dict(zip(pairs, points[column], strict=True))
        of_dense = [costs.get((setup, baseline_of[setup].get(arm, ""))) for setup, arm in pairs]
        points[f"overhead_{column}"] = points[column] / pd.Series(of_dense, points.index, dtype="float64") - 1
    return points


def _with_executed_flops(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table with the FLOPs that an arm executed, where its runs recorded them, as `flops_per_image`.

    Those of batches of one timestep come first, as sampling has such batches. They differ between seeds, whose mean it
    is; a plan does not.
    """
    executed = table["executed_flops_per_image_same_t"].fillna(table["executed_flops_per_image"])
    if executed.isna().all():
        return table
    by_arm = executed.groupby([table["setup"], table["arm"]]).transform("mean")
    return table.assign(flops_per_image=by_arm.fillna(table["flops_per_image"]))


def _draw_points(axes: Axes, points: pd.DataFrame, title: str) -> None:
    for label, router, variant in arm_list(points):
        arm = points[points["arm"] == label].sort_values(INFERENCE)
        for _, sizes in arm.groupby("study", sort=False):
            axes.plot(
                sizes[INFERENCE] * 1e3, sizes["val_loss"], **line_style(router, variant), linewidth=0.6, alpha=0.6
            )
        for point in arm.to_dict("records"):
            _draw_point(axes, point, variant)
    if is_wide(points[INFERENCE]):
        log_axis(axes, "x", points[INFERENCE] * 1e3)
    axes.set_xlabel("Measured inference time per image (ms)")
    axes.set_ylabel("Validation loss (velocity MSE)")
    axes.set_title(title, loc="left", fontweight="bold")


def _draw_point(axes: Axes, point: dict[Any, Any], variant: int) -> None:
    router, x, y = point["routing.name"], point[INFERENCE] * 1e3, point["val_loss"]
    spread: dict[str, Any] = {"color": router_color(router), "linewidth": 0.6}
    axes.plot([1e3 * point[f"{INFERENCE}_min"], 1e3 * point[f"{INFERENCE}_max"]], [y, y], **spread)
    axes.plot([x, x], [point["val_loss_min"], point["val_loss_max"]], **spread)
    axes.plot(x, y, **marker_style(router, variant, point["model.name"]))


def _draw_bars(axes: Axes, points: pd.DataFrame, arms: list[tuple[str, str, int]], named: bool) -> None:
    """Draws the overheads of one setup. The row of an arm that the setup does not have stays empty."""
    point_rows(axes, arms, str(points["model.name"].iloc[0]), named)
    rows = {label: row for row, (label, _, _) in enumerate(arms)}
    for point in points.to_dict("records"):
        y, color = rows[point["arm"]], router_color(point["routing.name"])
        if point["arm_kind"] == "dense_same_depth":
            axes.annotate("reference", (0, y), (2, 0), textcoords="offset points", va="center_baseline", fontsize=6)
            continue
        for i, (cost, style) in enumerate(zip(COSTS, BAR_STYLES, strict=True)):
            given = {"facecolor": color, **style}
            _draw_bar(axes, y + (i - 1) * BAR_HEIGHT, 100 * point[f"overhead_{cost}"], given)
    if points[[f"overhead_{cost}" for cost in COSTS]].isna().all(axis=None):
        axes.set(xticks=[], xlabel="Overhead: Dense (same depth) was not run")
        return
    axes.axvline(0, color="black", linewidth=0.6)
    axes.margins(x=0.18)
    few_ticks(axes.xaxis)
    axes.set_xlabel("Overhead (%)")


def _draw_bar(axes: Axes, y: float, overhead: float, style: dict[str, Any]) -> None:
    if overhead != overhead:
        return
    axes.barh(y, overhead, BAR_HEIGHT, **style)
    side = "left" if overhead >= 0 else "right"
    offset = (2 if overhead >= 0 else -2, 0)
    axes.annotate(
        f"{overhead:+z.0f}", (overhead, y), offset, textcoords="offset points", ha=side,
        va="center_baseline", fontsize=6,
    )  # fmt: skip


def _legend(figure: Figure, sizes: list[str]) -> None:
    entries: list[tuple[Artist, str]] = [
        (Patch(**BAR_STYLES[0]), "Activated parameters"),
        (Patch(**BAR_STYLES[1]), "FLOPs per image"),
        (Patch(facecolor=GREY), "Measured time, in the router's colour"),
        (Line2D([], [], color=GREY, linewidth=0.6), "Lowest to highest seed"),
    ]
    if len(sizes) > 1:
        entries += [(Line2D([], [], color=GREY, marker=SIZE_MARKERS[size], linestyle="none"), size) for size in sizes]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside upper center", ncols=4, columnspacing=1.2)
