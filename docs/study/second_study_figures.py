"""Draws the figures of the second study from its runs, objects and tests, for `second_study_page.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator, NullLocator
from second_study_results import DATA, UNDECIDED, WIDTH, Test, verdicts
from second_study_tables import arm_order

from analysis.router_looks import NAMED_COLORS, SPARE_COLORS
from analysis.style import TEXT_WIDTH_INCHES, Drawing, paper_style, router_color, write_drawing
from experiments.config.routers import router_label

LINES = ("-", "--", "-.", ":")
ANSWER_LOOKS = {"images": (NAMED_COLORS[0], "o"), "seconds": (NAMED_COLORS[1], "s")}
"""The axes of a saving that the figure of the answer shows, with a color and a marker for each."""
STUDY_ROUTERS = ("dense", "expert_choice", "token_choice", "switch", "expert_race", "moma", "loss_free")


def write_figure(drawing: Drawing, folder: Path, name: str) -> None:
    """Writes a figure as PNG, with its numbers."""
    for old in folder.glob(f"{name}.*"):  # a checkout has no record that this script made them
        old.unlink()
    write_drawing(drawing, folder, name)
    (folder / f"{name}.svg").unlink()


def draw_answer(tests: Iterable[Test]) -> Drawing:
    """A panel for each data set: what each arm saves in images and in seconds at the largest width, with intervals.

    `tests` are those of question (a). Arms with more experts than 8, which only one data set has, are left out. A
    marker is filled where the saving is supported or contradicted after correction.
    """
    tests = list(tests)
    shown = pd.DataFrame(
        [(test.data, test.arm, test.claim, int(test.at.split()[-1]), *test.ends, verdict)
         for test, verdict in zip(tests, verdicts(tests), strict=True)
         if test.claim in ANSWER_LOOKS and "(32E" not in test.arm],
        columns=["data", "arm", "axis", "width", "saving", "low", "high", "verdict"],
    )  # fmt: skip
    shown = shown[shown["width"] == shown["width"].max()]
    arms = sorted(shown["arm"].unique(), key=arm_order, reverse=True)
    names = [name for name in DATA if name in set(shown["data"])]
    with paper_style():
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, 2.9), layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True, sharex=True)[0]
        for axes, data in zip(panels, names, strict=True):
            for offset, (axis, (color, marker)) in zip((0.14, -0.14), ANSWER_LOOKS.items(), strict=True):
                rows = shown[(shown["data"] == data) & (shown["axis"] == axis)]
                heights = [arms.index(arm) + offset for arm in rows["arm"]]
                axes.hlines(heights, rows["low"], rows["high"], color=color, linewidth=1)
                axes.plot(
                    rows["saving"], heights, marker, color=color, markersize=4, markerfacecolor="white", label=axis
                )
                decided = [verdict != UNDECIDED for verdict in rows["verdict"]]
                axes.plot(rows["saving"][decided], list(compress(heights, decided)), marker, color=color, markersize=4)
            axes.axvline(1, color="black", linewidth=0.6)
            width = shown["width"].max()
            axes.set(title=f"{data}, width {width}", xlabel="Saving: dense's need / the arm's", xscale="log")
            axes.set_yticks(range(len(arms)), arms)
            axes.xaxis.set_major_locator(MultipleLocator(0.1))
            axes.xaxis.set_major_formatter(lambda value, place: f"{value:.2g}")
            axes.xaxis.set_minor_locator(NullLocator())
        lines, labels = figure.axes[0].get_legend_handles_labels()
        filled = Line2D([], [], color="0.4", marker="o", markersize=4, linestyle="")
        decided_label = "filled: supported or contradicted after correction"
        figure.legend([*lines, filled], [*labels, decided_label], loc="outside lower center", ncols=3)
    return Drawing(figure, shown)


def draw_savings(found: pd.DataFrame) -> Drawing:
    """A panel for each data set: the mean saving in images of each arm by width, and its numbers."""
    means = found.groupby(["data", "arm", "size"], sort=False, as_index=False)["log_saving"].mean()
    means["saving"] = means["log_saving"].map(math.exp)
    with paper_style():
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.2), layout="constrained")
        names, looks = list(dict.fromkeys(means["data"])), arm_looks(means["arm"])
        for axes, data in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
            _draw_lines(axes, means[means["data"] == data], "size", "saving", looks)
            axes.axhline(1, color="black", linewidth=0.6)
            axes.set(title=data, xlabel="Width", ylabel="Saving in images", xticks=sorted(means["size"].unique()))
        figure.legend(*_keys(figure.axes), loc="outside lower center", ncols=3, fontsize=6)
    return Drawing(figure, means)


def draw_objects(objects: pd.DataFrame) -> Drawing:
    """A panel for each routed layer at the largest width: the ratio of experts on objects and background by time."""
    largest = objects[objects[WIDTH] == objects[WIDTH].max()]
    means = largest.groupby(["layer", "arm", "time"], sort=False, as_index=False)[
        ["object_experts", "background_experts"]
    ].mean()
    means["ratio"] = means["object_experts"] / means["background_experts"]
    with paper_style():
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.2), layout="constrained")
        layers, looks = sorted(means["layer"].unique()), arm_looks(means["arm"])
        for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False, sharey=True)[0], layers, strict=True):
            _draw_lines(axes, means[means["layer"] == layer], "time", "ratio", looks)
            axes.axhline(1, color="black", linewidth=0.6)
            axes.set(title=f"layer {layer}", xlabel="t (1: noise)", ylabel="Experts, objects / background")
            axes.invert_xaxis()
            axes.set_yscale("log")  # some routers give objects a tenth more, and others a hundred times as many
            axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        figure.legend(*_keys(figure.axes), loc="outside lower center", ncols=3, fontsize=6)
    return Drawing(figure, means)


def _draw_lines(axes: Axes, means: pd.DataFrame, x: str, y: str, looks: Mapping[str, tuple[str, str]]) -> None:
    """Draws a line for each arm, in its color and dashes of `looks`."""
    for arm, rows in means.groupby("arm", sort=False):
        (color, dashes), ordered = looks[str(arm)], rows.sort_values(x)
        axes.plot(ordered[x], ordered[y], color=color, linestyle=dashes, marker=".", markersize=3, label=str(arm))


def arm_looks(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A color and dashes for each arm of a figure, the same in all panels; arms of one router share its color."""
    colors, num_by_color = study_colors(), dict.fromkeys(study_colors().values(), 0)
    looks = {}
    for arm in sorted(set(arms), key=arm_order):
        color = next(color for router, color in colors.items() if arm.startswith(router_label(router)))
        looks[arm] = (color, LINES[num_by_color[color] % len(LINES)])
        num_by_color[color] += 1
    return looks


def study_colors() -> dict[str, str]:
    """A color for each router of the study: its usual one, or a free one where a router before it has the same.

    Usual colors repeat between families of routers, which other figures show in panels of their own.
    """
    colors: dict[str, str] = {}
    for router in STUDY_ROUTERS:
        free = [color for color in (*SPARE_COLORS, *NAMED_COLORS) if color not in colors.values()]
        usual = router_color(router)
        colors[router] = free[0] if usual in colors.values() else usual
    return colors


def _keys(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """The lines of all panels, each arm once, in the order of the tables."""
    labelled = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    arms = sorted(labelled, key=arm_order)
    return [labelled[arm] for arm in arms], arms
