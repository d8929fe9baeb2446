"""`per-timestep-loss` shows at which times between noise and image a router gains, by tenths of t.

Each setup has one row of panels, or one for each family of routers where these are many: the final validation loss by
tenth (t = 0 is the image, t = 1 noise), and its difference from `Dense (same depth)` in percent, seed by seed over the
seeds that both have. Lines are means over seeds, and bands go from the lowest to the highest. A tenth without
validation images was not measured and breaks the line.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.arms import arm_list
from analysis.baselines import baselines
from analysis.figures.family_panels import family_panels, keys_beside, share_limits
from analysis.figures.grid import Key, line_keys, place_keys
from analysis.load_records import MissingDataError, Records
from analysis.style import (
    GREY,
    TEXT_WIDTH_INCHES,
    Drawing,
    few_ticks,
    line_style,
    lowest_to_highest,
    paper_style,
    shown,
)

NUM_TENTHS = 10
METRICS = {f"val_loss_t{tenth}": tenth for tenth in range(NUM_TENTHS)}
MEASURED_BY = "Runs measure it while they train; a larger eval.images fills every tenth."
T_LABEL = "Time t, in tenths (0: image, 1: noise)"


def draw_per_timestep_loss(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers, a row per setup, arm and tenth; `change` is in percent of dense.

    Raises `MissingDataError` where no run has its loss by tenths of t.
    """
    points = timestep_points(records, table)
    panels = family_panels(points["routing.name"])
    rows = [
        (str(setup), panel.named(str(setup)), panel.of(ours))
        for setup, ours in points.groupby("setup", sort=False)
        for panel in panels
        if len(panel.of(ours))
    ]
    with paper_style():
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, 1.9 * len(rows) + 0.7), layout="constrained")
        axes = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(1, 1.6))
        for (left, right), (_, title, ours) in zip(axes, rows, strict=True):
            _draw(left, ours, "loss", "Loss (velocity MSE)")
            left.set_title(shown(title), loc="left", fontweight="bold")
            _draw_change(right, ours)
            if len(panels) > 1:
                keys_beside(right, line_keys(ours))
        for setup in dict.fromkeys(setup for setup, _, _ in rows):
            of_setup = axes[[its == setup for its, _, _ in rows]]
            for column in of_setup.T:
                share_limits([each for each in column if each.axison])
        if keys := [*(_keys(points) if len(panels) == 1 else []), *_seed_keys(points)]:
            place_keys(figure, keys)
    return Drawing(figure, points.drop(columns="variant"))


def timestep_points(records: Records, table: pd.DataFrame) -> pd.DataFrame:
    """Returns `loss` and `change` (percent of dense), both with `_low`, `_high` and `_seeds`, by arm and `tenth`."""
    rows = _last_by_tenth(records, table)
    baseline_of = {str(setup): baselines(runs) for setup, runs in table.groupby("setup")}
    points = []
    for (setup, arm), ours in rows.groupby(["setup", "arm"], sort=False):
        reference = rows[(rows["setup"] == setup) & (rows["arm"] == baseline_of[str(setup)].get(str(arm)))]
        for tenth, values in ours.groupby("tenth"):
            losses = _by_seed(values)
            of_dense = _by_seed(reference[reference["tenth"] == tenth])
            about = {"setup": setup, "arm": arm, "tenth": tenth, "t": (int(str(tenth)) + 0.5) / NUM_TENTHS}
            changes = [100 * (losses[seed] / of_dense[seed] - 1) for seed in losses if seed in of_dense]
            points.append({**about, **_spread("loss", list(losses.values())), **_spread("change", changes)})
    order = {arm: i for i, (arm, _, _) in enumerate(arm_list(table))}
    frame = pd.DataFrame(points).merge(table.drop_duplicates(["setup", "arm"])[STYLE], on=["setup", "arm"])
    numbers = [f"{name}{end}" for name in ("loss", "change") for end in ("", "_low", "_high")]
    frame = frame.astype(dict.fromkeys(numbers, "float64"))
    return frame.sort_values(["arm", "tenth"], key=lambda c: c.map(order) if c.name == "arm" else c, kind="stable")


STYLE = ["setup", "arm", "routing.name", "variant"]


def _last_by_tenth(records: Records, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the last value of every tenth at the end of every run."""
    evals = records.evals[records.evals["metric"].isin(list(METRICS)) & (records.evals["weights"] == "raw")]
    about = table[["run", "seed", "setup", "arm", "images_seen"]]
    rows = about.merge(evals[["run", "metric", "value", "images_seen"]], on=["run", "images_seen"])
    if rows.empty:
        raise MissingDataError("No run has its validation loss by tenths of t at its end.", MEASURED_BY)
    return rows.assign(tenth=rows["metric"].map(METRICS)).drop_duplicates(["run", "tenth"], keep="last")


def _by_seed(rows: pd.DataFrame) -> dict[int, float]:
    return {int(seed): float(value) for seed, value in zip(rows["seed"], rows["value"], strict=True)}


def _spread(name: str, values: list[float]) -> dict[str, float | int | None]:
    if not values:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    middle = math.fsum(values) / len(values)
    return {name: middle, f"{name}_low": min(values), f"{name}_high": max(values), f"{name}_seeds": len(values)}


def _draw(axes: Axes, points: pd.DataFrame, column: str, label: str) -> None:
    for _, arm in points.groupby("arm", sort=False):
        style = line_style(arm["routing.name"].iloc[0], arm["variant"].iloc[0])
        whole = arm.set_index("tenth").reindex(range(NUM_TENTHS))
        t = (np.arange(NUM_TENTHS) + 0.5) / NUM_TENTHS
        axes.fill_between(t, whole[f"{column}_low"], whole[f"{column}_high"], color=style["color"], alpha=0.13, lw=0)
        axes.plot(t, whole[column], **style, marker=".", markersize=3.5)
    axes.set_xlim(0, 1)
    few_ticks(axes.xaxis, 5)
    few_ticks(axes.yaxis, 5)
    axes.set_xlabel(T_LABEL)
    axes.set_ylabel(label)


def _draw_change(axes: Axes, points: pd.DataFrame) -> None:
    """Draws the difference from dense, or writes that dense was not run."""
    if points["change"].isna().all():
        axes.annotate(
            "Dense (same depth)\nwas not run with these seeds", (0.5, 0.5), xycoords="axes fraction", ha="center",
            va="center", fontsize=6.5, color=GREY,
        )  # fmt: skip
        axes.set_axis_off()
        return
    _draw(axes, points, "change", "Difference from dense (%)")


def _keys(points: pd.DataFrame) -> list[Key]:
    return [(handle, shown(label)) for handle, label in line_keys(points)]


def _seed_keys(points: pd.DataFrame) -> list[Key]:
    band = Patch(color=GREY, alpha=0.25, linewidth=0)
    return [(band, lowest_to_highest(points["loss_seeds"]))] if points["loss_seeds"].max() > 1 else []
