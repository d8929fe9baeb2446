"""`loss-convergence` shows training and validation loss against images, training FLOPs and seconds.

There is one row of panels per setup, or per family of routers where these are many (`family_panels.py`). Under each
panel every arm has a line that marks where its mean validation loss reaches the final one of `Dense (same depth)`, and
how many times sooner that is in the unit of the axis. Curves are means over seeds, and bands go from the lowest to the
highest seed. The axis is scaled to the losses after the first `HIDDEN_SHARE` of training and cuts off higher ones. A
cross is the last finite loss of a run that diverged, and lies on the upper edge where that loss is cut off. With
`paper_values` a vertical line marks where EC-DIT's expert choice is level with dense: at half of the images of dense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.arms import arm_list
from analysis.baselines import baselines
from analysis.curves import AXES, loss_limits, mean_over_seeds, reach, smooth, training_curves, validation_curves
from analysis.diverged_runs import diverged_table, shown_with
from analysis.figures.diverged_marks import divergence_keys, last_points, mark_last_losses
from analysis.figures.family_panels import family_panels
from analysis.load_records import MissingDataError, Records
from analysis.paper_values import SHARE_OF_STEPS, SOURCES
from analysis.style import (
    GREY,
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

UNITS = {"images_seen": "images", "flops": "FLOP", "seconds": "s"}
QUANTITIES = {"images_seen": "Training images", "flops": "Training compute", "seconds": "Training time"}
PRINTED_LINE: dict[str, Any] = {"color": router_color("expert_choice"), "linewidth": 1.0, "linestyle": ":"}
SMOOTHED_SHARE = 0.08
"""The width of the running mean of the training loss, as a share of the training rows."""


class _Setup(NamedTuple):
    """The curves of one setup, as means over seeds; `targets` has the final losses of the baselines by their labels.

    `baselines` maps each arm to its baseline. `whole` has the validation curves of all routers of the setup, which set
    the limits of the axes.
    """

    name: str
    arms: list[tuple[str, str, int]]
    training: pd.DataFrame
    validation: pd.DataFrame
    baselines: Mapping[str, str]
    targets: Mapping[str, float]
    diverged: pd.DataFrame
    whole: pd.DataFrame


def draw_loss_convergence(records: Records, table: pd.DataFrame, paper_values: bool = False) -> Drawing:
    """Returns the figure and its numbers: mean curves (`split` training, validation) and crossings (`split` reach).

    Merged runs have no curves and are not in it. Raises `MissingDataError` where there are no others.
    """
    table = table[table["parts"].isna()]
    if table.empty:
        raise MissingDataError("All runs were merged from others and have no curves.", "Add runs of `ecdit train`.")
    validation = mean_over_seeds(validation_curves(records, table))
    training = mean_over_seeds(training_curves(records, table))
    lost = shown_with(diverged_table(records), table)
    setups = [_setup(name, runs, training, validation, lost) for name, runs in table.groupby("setup", sort=False)]
    with paper_style():
        rows = [part for setup in setups for part in _by_family(setup, table)]
        curves_height = 1.75 if len(rows) == len(setups) else 1.3
        heights = [h for part in rows for h in (curves_height, 0.14 * len(part.arms) + 0.1)]
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, sum(heights) + 0.75 * len(rows) + 0.2), layout="constrained")
        axes = figure.subplots(len(heights), 3, height_ratios=heights, squeeze=False)
        for i, setup in enumerate(rows):
            for column, x in enumerate(AXES):
                _draw_panel(axes[2 * i, column], axes[2 * i + 1, column], setup, x, is_first=column == 0)
            if paper_values and setup.targets:
                _draw_printed(axes[2 * i, 0], axes[2 * i + 1, 0], setup)
        has_target = any(setup.targets for setup in setups)
        _legend(figure, validation["num_seeds"], has_target, paper_values, lost)
    return Drawing(figure, _numbers(setups))


def _setup(
    name: object, runs: pd.DataFrame, training: pd.DataFrame, validation: pd.DataFrame, diverged: pd.DataFrame
) -> _Setup:
    ours = validation[validation["setup"] == name]
    baseline_of = baselines(runs)
    targets = {dense: float(ours.loc[ours["arm"] == dense, "loss"].iloc[-1]) for dense in baseline_of.values()}
    training, diverged = training[training["setup"] == name], diverged[diverged["setup"] == name]
    return _Setup(str(name), arm_list(runs), training, ours, baseline_of, targets, diverged, ours)


def _by_family(setup: _Setup, table: pd.DataFrame) -> Iterator[_Setup]:
    """Yields the setup once for each panel of `family_panels` in which it has runs, with the arms of that panel."""
    runs = table[table["setup"] == setup.name]
    for panel in family_panels([*table["routing.name"], *setup.diverged["routing.name"]]):
        arms = arm_list(panel.of(runs))
        names, lost = [label for label, _, _ in arms], panel.of(setup.diverged)
        if not arms and lost.empty:
            continue
        yield setup._replace(
            name=panel.named(setup.name), arms=arms, diverged=lost,
            training=setup.training[setup.training["arm"].isin(names)],
            validation=setup.validation[setup.validation["arm"].isin(names)],
        )  # fmt: skip


def _draw_panel(curves: Axes, rows: Axes, setup: _Setup, x: str, is_first: bool) -> None:
    factor, unit = scaled(float(setup.whole[x].max()), UNITS[x])
    for label, router, variant in setup.arms:
        style = line_style(router, variant)
        training = setup.training[setup.training["arm"] == label]
        smoothed = smooth(training["loss"].to_list(), max(5, round(SMOOTHED_SHARE * len(training))))
        curves.plot(training[x] / factor, smoothed, color=style["color"], alpha=0.3, linewidth=0.6, zorder=1)
        validation = setup.validation[setup.validation["arm"] == label]
        low, high = validation["loss_min"], validation["loss_max"]
        curves.fill_between(validation[x] / factor, low, high, color=style["color"], alpha=0.15, linewidth=0)
        curves.plot(validation[x] / factor, validation["loss"], **style)
    # The first losses are many times the final ones and would press all differences between arms into a line.
    curves.set_ylim(*loss_limits(setup.whole))
    curves.set_xlim(0, float(setup.whole[x].max()) / factor)
    mark_last_losses(curves, setup.diverged, x, factor)
    curves.tick_params(labelbottom=False)
    _draw_reaching(curves, rows, setup, x, factor, is_first)
    few_ticks(curves.xaxis)
    few_ticks(rows.xaxis)
    rows.set_xlabel(f"{QUANTITIES[x]} ({unit})")
    if is_first:
        curves.set_ylabel("Loss (velocity MSE)")
        curves.set_title(shown(setup.name), loc="left", fontweight="bold")
    else:
        curves.tick_params(labelleft=False)


def _draw_reaching(curves: Axes, rows: Axes, setup: _Setup, x: str, factor: float, is_first: bool) -> None:
    arm_rows(rows, setup.arms, named=is_first)
    rows.set_xlim(curves.get_xlim())
    if not setup.targets:
        return
    for target in setup.targets.values():
        curves.axhline(target, color=GREY, linewidth=0.6, linestyle=(0, (3, 2)), zorder=1)
    reached = _reached(setup, x)
    for row, (label, router, variant) in enumerate(setup.arms):
        color = line_style(router, variant)["color"]
        at, sooner = reached[label]
        if at is not None:
            target = setup.targets[setup.baselines[label]]
            curves.plot(at / factor, target, "o", color=color, markersize=3, zorder=4, clip_on=False)
            rows.plot(at / factor, row, "o", color=color, markersize=3.5, zorder=4, clip_on=False)
            rows.hlines(row, 0, at / factor, color=color, linewidth=0.6, alpha=0.5)
        never = "never" if label in setup.baselines else "no dense"
        text = never if sooner is None else f"{sooner:.2f}×"
        rows.annotate(text, (1, row), (3, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=6.5)


def _draw_printed(curves: Axes, rows: Axes, setup: _Setup) -> None:
    """Marks where expert choice would reach the final loss of dense if it did as in the paper."""
    dense = setup.whole[setup.whole["arm"].isin(list(setup.targets))]["images_seen"].max()
    factor, _ = scaled(float(setup.whole["images_seen"].max()), UNITS["images_seen"])
    for axes in (curves, rows):
        axes.axvline(SHARE_OF_STEPS * dense / factor, **PRINTED_LINE)


def _reached(setup: _Setup, x: str) -> dict[str, tuple[float | None, float | None]]:
    """Maps each arm to where it reaches the loss of its baseline and how many times sooner; None where it does not."""
    reached: dict[str, tuple[float | None, float | None]] = {}
    for label, _, _ in setup.arms:
        reached[label] = None, None
        if dense := setup.baselines.get(label):
            at, of_dense = (_where(setup, arm, x, setup.targets[dense]) for arm in (label, dense))
            assert of_dense is not None
            reached[label] = at, None if at is None else of_dense / at
    return reached


def _where(setup: _Setup, arm: str, x: str, loss: float) -> float | None:
    curve = setup.whole[setup.whole["arm"] == arm]
    return reach(curve[x].to_list(), curve["loss"].to_list(), loss)


def _legend(
    figure: Figure, num_seeds: pd.Series[int], has_target: bool, paper_values: bool, diverged: pd.DataFrame
) -> None:
    entries: list[tuple[Artist, str]] = []
    one = num_seeds.max() == 1
    entries += [(Line2D([], [], color=GREY), f"Validation loss, {'one seed' if one else 'mean over seeds'}")]
    if not one:
        entries += [(Patch(color=GREY, alpha=0.25, linewidth=0), lowest_to_highest(num_seeds))]
    entries += [(Line2D([], [], color=GREY, alpha=0.45, linewidth=0.6), "Training loss, running mean")]
    if has_target:
        reached = Line2D([], [], color=GREY, linewidth=0.6, linestyle=(0, (3, 2)), marker="o", markersize=3)
        entries.append((reached, "Final loss of Dense (same depth) reached: how many times sooner"))
    if paper_values and has_target:
        entries.append((Line2D([], [], **PRINTED_LINE), f"Expert choice as printed: {SOURCES['share_of_steps']}"))
    entries += divergence_keys(diverged)
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside upper center", ncols=2)


def _numbers(setups: list[_Setup]) -> pd.DataFrame:
    parts = []
    for setup in setups:
        parts += [setup.training.assign(split="training"), setup.validation.assign(split="validation")]
        if setup.targets:
            parts.append(_reaching_numbers(setup))
        if len(setup.diverged):
            parts.append(last_points(setup.diverged))
    return pd.concat(parts, ignore_index=True)


def _reaching_numbers(setup: _Setup) -> pd.DataFrame:
    """Returns a row per arm: where it reaches its target on each axis (missing if never), and how many times sooner."""
    rows = {label: {"setup": setup.name, "arm": label, "split": "reach"} for label, _, _ in setup.arms}
    targets = [setup.targets.get(setup.baselines.get(label, "")) for label in rows]
    frame = pd.DataFrame(rows.values()).assign(loss=pd.Series(targets, dtype="float64"))
    for x in AXES:
        reached = _reached(setup, x)
        frame[x] = [reached[label][0] for label in frame["arm"]]
        frame[f"times_sooner_{x}"] = [reached[label][1] for label in frame["arm"]]
    return frame
