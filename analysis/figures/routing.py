"""`routing` shows the validation loss of each router over training and at the end.

There is one row of panels per setup, or per family of routers where these are many (`family_panels.py`).

Left are means over seeds with a band from the lowest to the highest seed. Right are the final loss of every seed, their
mean and its 95% interval (Student's t; one seed has none), with the best arm on top. A cross is a run that diverged: at
the left its last finite loss, at the right one beside the row of its arm.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.arms import arm_list
from analysis.curves import loss_limits, mean_over_seeds, validation_curves
from analysis.diverged_runs import diverged_table, shown_with
from analysis.figures.diverged_marks import divergence_keys, last_points, mark_last_losses, mark_rows
from analysis.figures.family_panels import FamilyPanel, family_panels, share_limits
from analysis.figures.grid import Key
from analysis.load_records import MissingDataError, Records
from analysis.seed_intervals import Interval, interval_of_mean
from analysis.style import (
    GREY,
    SIZE_MARKERS,
    TEXT_WIDTH_INCHES,
    Drawing,
    arm_rows,
    few_ticks,
    line_style,
    lowest_to_highest,
    paper_style,
    router_color,
    scaled,
    shown,
)

SEED_OFFSET = 0.22
"""The distance in rows between the mean of an arm and the points of its seeds."""


class _End(NamedTuple):
    """The final losses of one arm by seed, and their mean with its interval."""

    arm: tuple[str, str, int]
    preset: str
    losses: dict[int, float]
    interval: Interval


def draw_routing(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers: mean curves (`split` training), final losses (seed) and their means (end)."""
    if table["arm"].nunique() < 2:
        raise MissingDataError(
            f"All runs are {table['arm'].iloc[0]}: there is no routing to compare.", "Add runs of another routing.name."
        )
    curves = mean_over_seeds(validation_curves(records, table))
    ends = {str(name): _ends(runs) for name, runs in table.groupby("setup", sort=False)}
    diverged = shown_with(diverged_table(records), table)
    panels = family_panels([*table["routing.name"], *diverged["routing.name"]])
    rows = [(setup, panel, kept) for setup in ends for panel in panels if (kept := _of_panel(ends[setup], panel))]
    with paper_style():
        heights = [max(1.8, 0.19 * len(of_panel) + 0.5) for _, _, of_panel in rows]
        foot = 0.3 if len(diverged) else 0.0  # where the runs that diverged are named
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, sum(heights) + 0.5 + foot), layout="constrained")
        axes = figure.subplots(len(rows), 2, height_ratios=heights, width_ratios=(1.25, 1), squeeze=False)
        for row, (setup, panel, of_panel) in enumerate(rows):
            lost = panel.of(diverged[diverged["setup"] == setup])
            _draw_curves(axes[row, 0], curves[curves["setup"] == setup], of_panel)
            mark_last_losses(axes[row, 0], lost, "images_seen", _images_unit(curves, setup)[0])
            axes[row, 0].set_title(shown(panel.named(setup)), loc="left", fontweight="bold")
            _draw_ends(axes[row, 1], of_panel)
            mark_rows(axes[row, 1], [end.arm[0] for end in of_panel], lost)
        for setup in ends:
            share_limits([axes[row, 1] for row, (its, _, _) in enumerate(rows) if its == setup], "x")
        _legend(figure, curves["num_seeds"], diverged)
    numbers = _numbers(curves, ends)
    return Drawing(figure, pd.concat([numbers, last_points(diverged)], ignore_index=True) if len(diverged) else numbers)


def _images_unit(curves: pd.DataFrame, setup: str) -> tuple[float, str]:
    """Returns the factor and the unit of the axis for the images of one setup."""
    return scaled(float(curves.loc[curves["setup"] == setup, "images_seen"].max()), "images")


def _ends(runs: pd.DataFrame) -> list[_End]:
    """Returns the final losses of the arms of one setup, lowest mean first."""
    ends = []
    for arm in arm_list(runs):
        ours = runs[runs["arm"] == arm[0]]
        losses = {int(seed): float(loss) for seed, loss in zip(ours["seed"], ours["val_loss"], strict=True)}
        ends.append(_End(arm, ours["model.name"].iloc[0], losses, interval_of_mean(list(losses.values()))))
    return sorted(ends, key=lambda end: end.interval.mean)


def _of_panel(ends: list[_End], panel: FamilyPanel) -> list[_End]:
    return [end for end in ends if end.arm[1] in panel.routers]


def _draw_curves(axes: Axes, curves: pd.DataFrame, ends: list[_End]) -> None:
    factor, unit = scaled(float(curves["images_seen"].max()), "images")
    for end in ends:
        label, router, variant = end.arm
        ours = curves[curves["arm"] == label]
        style = line_style(router, variant)
        x = ours["images_seen"] / factor
        axes.fill_between(x, ours["loss_min"], ours["loss_max"], color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(x, ours["loss"], **style)
    axes.set_ylim(*loss_limits(curves))
    axes.set_xlim(0, float(curves["images_seen"].max()) / factor)
    axes.set_xlabel(f"Training images ({unit})")
    axes.set_ylabel("Validation loss (velocity MSE)")


def _draw_ends(axes: Axes, ends: list[_End]) -> None:
    arm_rows(axes, [end.arm for end in ends])
    for row, end in enumerate(ends):
        color = router_color(end.arm[1])
        at = end.interval
        if at.low is not None and at.high is not None:
            axes.plot([at.low, at.high], [row, row], color=color, linewidth=1.2, solid_capstyle="butt")
        axes.plot(at.mean, row, marker=SIZE_MARKERS[end.preset], color=color)
        seeds = list(end.losses.values())
        axes.plot(seeds, [row + SEED_OFFSET] * len(seeds), "|", color=color, markersize=4, markeredgewidth=0.8)
    few_ticks(axes.xaxis, 5)
    axes.set_xlabel("Final validation loss (velocity MSE)")


def _legend(figure: Figure, num_seeds: pd.Series[int], diverged: pd.DataFrame) -> None:
    one = num_seeds.max() == 1
    entries: list[Key] = [
        (Line2D([], [], color=GREY), "One seed" if one else "Mean over seeds"),
        (Patch(color=GREY, alpha=0.25, linewidth=0), lowest_to_highest(num_seeds)),
        (Line2D([], [], color=GREY, marker="|", linestyle="none", markersize=4), "One seed"),
        (Line2D([], [], color=GREY, marker="o"), "Mean and its 95% interval"),
    ]
    entries = [*(entries[:1] if one else entries), *divergence_keys(diverged)]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside upper center", ncols=4)


def _numbers(curves: pd.DataFrame, ends: dict[str, list[_End]]) -> pd.DataFrame:
    rows = []
    for setup, of_setup in ends.items():
        for end in of_setup:
            about = {"setup": setup, "arm": end.arm[0]}
            rows += [{**about, "split": "seed", "seed": seed, "loss": loss} for seed, loss in end.losses.items()]
            at = asdict(end.interval)
            rows.append({**about, "split": "end", "loss": at["mean"], "loss_low": at["low"], "loss_high": at["high"],
                         "num_seeds": at["num_values"]})  # fmt: skip
    return pd.concat([curves.assign(split="training"), pd.DataFrame(rows)], ignore_index=True)
