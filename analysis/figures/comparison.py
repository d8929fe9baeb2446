"""`comparison` shows the gain and the cost of each router, one row per arm, with the best final loss on top.

Four panels share the rows: the final validation loss on mixed batches (filled, with the 95% interval over seeds) and on
batches of one timestep (hollow); the images to the final loss of dense; the share of tokens that no expert processed
(dropped, or not chosen) under both conditions; and training and inference speed relative to `Dense (same depth)`.

Where runs recorded how evenly or at which cost they routed, a second row has a panel for each quantity that is known
(`routing_costs.py`): MaxVio, pairs of experts in use, executed over planned FLOPs, the loss with the decision of
training, and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.arm_table import arm_table
from analysis.diverged_runs import diverged_table
from analysis.figures.diverged_marks import divergence_keys, mark_rows
from analysis.figures.grid import Key
from analysis.figures.routing_costs import draw_costs, known_costs
from analysis.load_records import Records
from analysis.run_table import INFERENCE, is_missing
from analysis.style import (
    GREY,
    TEXT_WIDTH_INCHES,
    Drawing,
    arm_rows,
    few_ticks,
    paper_style,
    router_color,
    scaled,
    shown,
)

TRAINING_MARKER, INFERENCE_MARKER = ">", "D"


def draw_comparison(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure with the arm table as its numbers."""
    arms, diverged = arm_table(records, table), diverged_table(records)
    setups = [rows for _, rows in arms.groupby("setup", sort=False)]
    with paper_style():
        costs = known_costs(arms)
        blocks = [rows for rows in setups for _ in range(1 + bool(costs))]
        heights = [0.2 * len(rows) + 0.75 for rows in blocks]
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, sum(heights) + 0.35), layout="constrained")
        grid = figure.add_gridspec(len(blocks), 4, height_ratios=heights, width_ratios=(1.4, 1, 1, 1))
        for place, rows in enumerate(setups):
            ours = diverged[diverged["setup"] == rows["setup"].iloc[0]]
            ranked, row = rows.sort_values("val_loss_mean", kind="stable"), place * (1 + bool(costs))
            _draw_setup([figure.add_subplot(grid[row, column]) for column in range(4)], ranked, ours)
            if costs:
                within = grid[row + 1, :].subgridspec(1, len(costs))
                draw_costs([figure.add_subplot(within[column]) for column in range(len(costs))], ranked, costs)
        _legend(figure, diverged, [key for cost in costs for key in cost.keys])
    return Drawing(figure, arms.drop(columns=["variant"]))


def _draw_setup(axes: list[Axes], rows: pd.DataFrame, diverged: pd.DataFrame) -> None:
    arms = list(rows[["arm", "routing", "variant"]].itertuples(index=False, name=None))
    for panel in axes:
        arm_rows(panel, arms, named=panel is axes[0])
    axes[0].set_title(shown(rows["setup"].iloc[0]), loc="left", fontweight="bold")
    _draw_losses(axes[0], rows)
    mark_rows(axes[0], rows["arm"].to_list(), diverged)
    _draw_images(axes[1], rows)
    _draw_dropped(axes[2], rows)
    _draw_speed(axes[3], rows)


def _draw_losses(axes: Axes, rows: pd.DataFrame) -> None:
    for y, (_, arm) in enumerate(rows.iterrows()):
        color = router_color(arm["routing"])
        if not is_missing(arm["val_loss_low"]):
            axes.plot([arm["val_loss_low"], arm["val_loss_high"]], [y, y], color=color, solid_capstyle="butt")
        _draw_conditions(axes, y, arm["val_loss_mean"], arm["val_loss_same_t_mean"], color)
    few_ticks(axes.xaxis)
    axes.set_xlabel("Validation loss\n(velocity MSE)")


def _draw_conditions(axes: Axes, y: int, mixed: float, same_t: float, color: str) -> None:
    """Draws a point for mixed batches and a ring for batches of one timestep, both visible where they coincide."""
    axes.plot(mixed, y, "o", color=color, markersize=3.5, clip_on=False, zorder=3)
    axes.plot(same_t, y, "o", color=color, markersize=6, fillstyle="none", markeredgewidth=0.8, clip_on=False, zorder=3)


def _draw_images(axes: Axes, rows: pd.DataFrame) -> None:
    factor, unit = scaled(float(rows["train_images"].max()), "images")
    for y, (_, arm) in enumerate(rows.iterrows()):
        images = arm["images_to_dense_loss"]
        if is_missing(images):
            missing = "never" if arm["baseline"] in set(rows["arm"]) else "no dense"
            words = missing if arm["num_seeds"] else "diverged" if arm["num_diverged"] else "no loss"
            axes.annotate(words, (0.04, y), xycoords=("axes fraction", "data"), va="center", fontsize=6.5, color=GREY)
        else:
            axes.plot(images / factor, y, "o", color=router_color(arm["routing"]), clip_on=False)
    axes.set_xlim(0, float(rows["train_images"].max()) / factor)
    few_ticks(axes.xaxis)
    axes.set_xlabel(f"Images to dense's\nfinal loss ({unit})")


def _draw_dropped(axes: Axes, rows: pd.DataFrame) -> None:
    for y, (_, arm) in enumerate(rows.iterrows()):
        color = router_color(arm["routing"])
        _draw_conditions(axes, y, 100 * arm["dropped_share"], 100 * arm["dropped_share_same_t"], color)
        if arm["num_experts"] == 0:
            axes.annotate("–", (0.04, y), xycoords=("axes fraction", "data"), va="center", color=GREY)
    if rows["dropped_share"].isna().all():
        _say(axes, "not measured")
    else:
        axes.set_xlim(left=0)
        few_ticks(axes.xaxis)
    axes.set_xlabel("Tokens that no expert\nprocessed (%)")


def _draw_speed(axes: Axes, rows: pd.DataFrame) -> None:
    by_label = rows.set_index("arm")
    axes.set_xlabel("Images/s, relative to\nDense (same depth)")
    if not rows["baseline"].isin(rows["arm"]).any():
        _say(axes, "It was not run")
        return
    axes.axvline(1, color=GREY, linewidth=0.6, zorder=1)
    for y, (_, arm) in enumerate(rows.iterrows()):
        if arm["baseline"] not in by_label.index:
            continue
        color, dense = router_color(arm["routing"]), by_label.loc[arm["baseline"]]
        training = arm["images_per_second"] / dense["images_per_second"]
        inference = dense[INFERENCE] / arm[INFERENCE]
        axes.plot(training, y - 0.18, TRAINING_MARKER, color=color, markersize=3.5, clip_on=False)
        axes.plot(inference, y + 0.18, INFERENCE_MARKER, color=color, fillstyle="none", markersize=3, clip_on=False)
    axes.set_xlim(left=0)
    few_ticks(axes.xaxis, 3)


def _say(axes: Axes, words: str) -> None:
    """Writes into an empty panel why it is empty."""
    axes.annotate(words, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=6.5, color=GREY)
    axes.set_xticks([])


def _legend(figure: Figure, diverged: pd.DataFrame, more: Sequence[Key]) -> None:
    grey: dict[str, Any] = {"color": GREY, "linestyle": "none"}
    entries: list[Key] = [
        (Line2D([], [], color=GREY, marker="o", markersize=3.5), "Mixed batches, mean and 95% interval"),
        (Line2D([], [], **grey, marker="o", fillstyle="none", markersize=6), "Batches of one timestep"),
        (Line2D([], [], **grey, marker=TRAINING_MARKER, markersize=3.5), "Training speed"),
        (Line2D([], [], **grey, marker=INFERENCE_MARKER, fillstyle="none", markersize=3), "Inference speed"),
        *divergence_keys(diverged, "A seed that diverged"),
        *more,
    ]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside upper center", ncols=4, columnspacing=1.2)
