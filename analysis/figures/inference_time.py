"""`inference-time`: measured seconds per image against quality, and what routing should and does cost over dense.

Left: one point per arm and size. Right: for every arm the overhead over `Dense (same depth)` of its setting in
activated parameters and FLOPs (by arithmetic) beside the one in measured time. Points are means over seeds, error bars
go from the lowest to the highest seed.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.arms import arm_list, dense_same_depth
from analysis.load import MissingDataError, Records
from analysis.style import (
    GREY,
    LIGHT_GREY,
    ROUTER_STYLES,
    SIZE_MARKERS,
    TEXT_WIDTH_INCHES,
    Drawing,
    line_style,
    marker_style,
    paper_style,
    shown,
)
from analysis.tables import INFERENCE

MEASURED_BY = "Measure it with: ecdit bench inference RUN"
COSTS = {"params_active": "Activated parameters", "flops_per_image": "FLOPs per image", INFERENCE: "Measured time"}
BAR_HEIGHT = 0.26


def draw_inference_time(records: Records, table: pd.DataFrame) -> Drawing:
    """The figure and its numbers: one row per setting and arm. A `MissingDataError` where no time was measured."""
    points = inference_points(table)
    bars = points[points["overhead_params_active"].notna() & (points["arm"] != points["dense"])]
    with paper_style():
        height = max(2.7, 0.36 * len(bars) + 0.9)
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, height + 0.35), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _draw_points(left, points)
        _draw_bars(right, bars, several_settings=points["setting"].nunique() > 1)
        _legend(figure, points)
    return Drawing(figure, points.drop(columns="variant"))


def inference_points(table: pd.DataFrame) -> pd.DataFrame:
    """One row per setting and arm: means, lowest and highest of time and loss, overheads over dense as ratios - 1."""
    measured = table[table[INFERENCE].notna()]
    if measured.empty:
        raise MissingDataError("No run has a measured inference time.", MEASURED_BY)
    about = ["routing.name", "routing.num_experts", "model.name", "variant", "params_active", "flops_per_image"]
    grouped = measured.groupby(["setting", "arm"], sort=False)
    points = grouped[about].first()
    for column in (INFERENCE, "val_loss"):
        points[[column, f"{column}_min", f"{column}_max"]] = grouped[column].agg(["mean", "min", "max"])
    points["num_seeds"] = grouped["run"].nunique()
    points = points.reset_index()
    points["dense"] = points["setting"].map({name: dense_same_depth(runs) for name, runs in measured.groupby("setting")})
    dense = points[points["arm"] == points["dense"]].set_index("setting")
    for column in COSTS:
        points[f"overhead_{column}"] = points[column] / points["setting"].map(dense[column]) - 1
    return points


def _draw_points(axes: Axes, points: pd.DataFrame) -> None:
    for label, router, variant in arm_list(points):
        arm = points[points["arm"] == label].sort_values(INFERENCE)
        axes.plot(arm[INFERENCE] * 1e3, arm["val_loss"], **line_style(router, variant), linewidth=0.7, alpha=0.6)
        for _, point in arm.iterrows():
            _draw_point(axes, point, router, variant)
    axes.set_xscale("log")
    axes.set_xlabel("Measured inference time per image (ms)")
    axes.set_ylabel("Validation loss (velocity MSE)")
    axes.set_title("Quality against inference time", loc="left")


def _draw_point(axes: Axes, point: pd.Series, router: str, variant: int) -> None:  # type: ignore[type-arg]
    x, y = point[INFERENCE] * 1e3, point["val_loss"]
    x_error = [[x - point[f"{INFERENCE}_min"] * 1e3], [point[f"{INFERENCE}_max"] * 1e3 - x]]
    y_error = [[y - point["val_loss_min"]], [point["val_loss_max"] - y]]
    axes.errorbar(x, y, y_error, x_error, fmt="none", ecolor=ROUTER_STYLES[router].color, elinewidth=0.6)
    axes.plot(x, y, **marker_style(router, variant, point["model.name"]))


def _draw_bars(axes: Axes, bars: pd.DataFrame, several_settings: bool) -> None:
    names = []
    for row, (_, bar) in enumerate(bars.iterrows()):
        color = ROUTER_STYLES[bar["routing.name"]].color
        styles = ({"color": LIGHT_GREY}, {"color": "white", "edgecolor": GREY, "hatch": "////"}, {"color": color})
        for i, (cost, style) in enumerate(zip(COSTS, styles, strict=True)):
            overhead = 100 * bar[f"overhead_{cost}"]
            y = row + (i - 1) * BAR_HEIGHT
            axes.barh(y, overhead, BAR_HEIGHT, linewidth=0.4, **style)
            offset = (2, 0) if overhead >= 0 else (-2, 0)
            side = "left" if overhead >= 0 else "right"
            axes.annotate(f"{overhead:+.0f}", (overhead, y), offset, textcoords="offset points", ha=side, va="center",
                          fontsize=6)  # fmt: skip
        names.append(shown(bar["arm"]) + (f"\n{bar['setting']}" if several_settings else ""))
    axes.set_yticks(range(len(bars)), names)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Overhead over Dense (same depth) (%)")
    axes.set_title("Theoretical and measured overhead", loc="left")


def _legend(figure: Figure, points: pd.DataFrame) -> None:
    sizes = list(dict.fromkeys(points["model.name"]))
    marker = sizes[0] if len(sizes) == 1 else "nano"
    entries = [
        (Line2D([], [], **{**marker_style(router, variant, marker)}), shown(label))
        for label, router, variant in arm_list(points)
    ]
    if len(sizes) > 1:
        entries += [(Line2D([], [], color=GREY, marker=SIZE_MARKERS[size], linestyle="none"), size) for size in sizes]
    bars = [
        (Patch(facecolor=LIGHT_GREY), "Activated parameters"),
        (Patch(facecolor="white", edgecolor=GREY, hatch="////", linewidth=0.4), "FLOPs per image"),
        (Patch(facecolor=GREY), "Measured time (colour of the router)"),
    ]
    handles, labels = zip(*entries, *bars, strict=True)
    figure.legend(handles, labels, loc="outside upper center", ncols=4, columnspacing=1.2)
