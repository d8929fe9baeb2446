"""`isoflop` shows the loss of every size at each budget of training FLOPs, and how the best size grows with compute.

Above is a panel per arm with the final validation loss against parameters and one parabola per budget, from pale
(small) to full colour (large). Its minimum is marked; a cross is a minimum at the edge of the sizes, which is not used.
Bars go from the lowest to the highest seed. Below are N* (parameters) and D* (images) of the minima against the budget,
with their power laws, in a row for each family of routers where these are many. Full marks and lines belong to the
parabolas, hollow marks to Akima's interpolation. Bars are 95% intervals of the parabolas' minima over configurations.
The foot gives the exponents with their intervals over budgets and over configurations, and by which factor the best
sizes of the methods differ. Hollow diamonds are the joint law's. The method is described in
`analysis/isoflop_minima.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecBase
from matplotlib.lines import Line2D

from analysis.figures.family_panels import family_panels, keys_beside
from analysis.figures.grid import MOST_COLUMNS, Key, label_losses, named_ticks, place_keys, title_panel
from analysis.figures.panels import write_foot
from analysis.isoflop_laws import METHOD, MIN_BUDGETS
from analysis.isoflop_minima import IsoFlop, flops_text, isoflop
from analysis.isoflop_parametric import disagreement_text
from analysis.load_records import Records
from analysis.parameter_counts import ACTIVATED, Count
from analysis.style import (
    GREY,
    TEXT_WIDTH_INCHES,
    Drawing,
    few_ticks,
    line_style,
    log_axis,
    paper_style,
    router_color,
    scaled,
    shown,
)

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PALEST = 0.35
"""The share of the router's colour that the smallest budget has; the largest has all of it."""
MINIMUM: dict[str, Any] = {"color": "black", "markersize": 7, "linestyle": "none", "zorder": 4}
INNER: dict[str, Any] = {"marker": "o", "fillstyle": "none"}
EDGE: dict[str, Any] = {"marker": "x"}
METHOD_MARKS = (("akima", "o", "none"), ("parametric", "D", "none"), ("quadratic", "o", "full"))
"""The method of a minimum with the marker and fill that stand for it; the last is drawn on top."""
UNITS = {"params": "parameters", "images": "images"}
LABELS = {"params": "Best size N*,\nparameters ({})", "images": "Best training D*,\nimages ({})"}
MOST_TICKS = 5
LEAST_RATIO = 1.15
"""The smallest factor by which an axis extends beyond the values."""
MOST_LAWS = 12
"""The number of lines on laws and on how their methods differ that the foot has; the others are only counted."""
LONGEST_LINES = 4
"""The number of refusals that the foot lists; the others are only counted."""


class _IsoflopArm(NamedTuple):
    """One arm of one study, with the router and variant that determine its look."""

    study: str
    name: str
    router: str
    variant: int

    @property
    def title(self) -> str:
        return f"{self.name}, {self.study}" if self.study else self.name

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of this arm."""
        return frame[(frame["study"] == self.study) & (frame["arm"] == self.name)]


def draw_isoflop(_records: Records, table: pd.DataFrame, parameters: Count = ACTIVATED) -> Drawing:
    """Returns the figure and its numbers; `split` is profile, minimum, law or disagreement.

    Raises `MissingDataError` as `isoflop`.
    """
    found = isoflop(table, parameters.column)
    arms = [
        _IsoflopArm(*values)
        for values in found.profiles.drop_duplicates(["study", "arm"])[
            ["study", "arm", "routing.name", "variant"]
        ].itertuples(index=False, name=None)
    ]
    budgets = _budget_names(found)
    families = family_panels(arm.router for arm in arms)
    with paper_style():
        figure, tops, bottoms = _axes(len(arms), len(families))
        for axes, arm in zip(tops, arms, strict=True):
            _draw_profiles(axes, arm, found, budgets)
            axes.set_xlabel(f"{parameters.label} ({_size_unit(arm, found)[1]})")
        label_losses(tops)
        for pair, family in zip(bottoms, families, strict=True):
            ours = [arm for arm in arms if arm.router in family.routers]
            for axes, quantity in zip(pair, LABELS, strict=True):
                _draw_laws(axes, quantity, ours, found)
            if len(families) > 1:
                title_panel(pair[0], family.title, len(LABELS))
                keys_beside(pair[1], _arm_keys(ours))
        shared = [] if len(families) > 1 else [(handle, shown(label)) for handle, label in _arm_keys(arms)]
        place_keys(figure, _keys(found, budgets, shared))
        write_foot(figure, _foot(found))
    parts = {
        "profile": found.profiles, "minimum": found.minima, "law": found.laws, "disagreement": found.disagreements,
    }  # fmt: skip
    numbers = pd.concat([frame.assign(split=split) for split, frame in parts.items() if len(frame)], ignore_index=True)
    return Drawing(figure, numbers.drop(columns="variant").assign(params_counted=parameters.column))


def _axes(num_arms: int, num_families: int) -> tuple[Figure, list[Axes], list[tuple[Axes, Axes]]]:
    """Returns the figure, a panel per arm in rows of at most `MOST_COLUMNS`, and below two wide ones per family."""
    columns = min(num_arms, MOST_COLUMNS)
    rows = -(-num_arms // columns)
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 2.0 * (rows + num_families) + 1.0), layout="constrained")
    if num_families == 1:
        grid: GridSpecBase = figure.add_gridspec(rows + 1, 6)
        laws = [(grid[rows, :3], grid[rows, 3:])]
    else:  # The keys beside the panels of laws must not narrow those above, which are therefore laid out by themselves.
        outer = figure.add_gridspec(2, 1, height_ratios=(rows, num_families))
        grid, pairs = outer[0].subgridspec(rows, 6), outer[1].subgridspec(num_families, 2)
        laws = [(pairs[i, 0], pairs[i, 1]) for i in range(num_families)]
    wide = 6 // columns
    tops = [
        figure.add_subplot(grid[i // columns, wide * (i % columns) : wide * (i % columns + 1)]) for i in range(num_arms)
    ]
    return figure, tops, [(figure.add_subplot(left), figure.add_subplot(right)) for left, right in laws]


def _budget_names(found: IsoFlop) -> list[str]:
    """Returns the budgets of all arms as texts, small to large, where those that differ by rounding are one."""
    return list(dict.fromkeys(flops_text(flops) for flops in sorted(found.profiles["flops"])))


def _draw_profiles(axes: Axes, arm: _IsoflopArm, found: IsoFlop, budgets: Sequence[str]) -> None:
    profiles, minima = arm.of(found.profiles), arm.of(found.minima)
    factor, _ = _size_unit(arm, found)
    for flops, profile in profiles.groupby("flops"):
        place = budgets.index(flops_text(float(str(flops))))
        color, marker = _tone(arm.router, place, len(budgets)), MARKERS[place % len(MARKERS)]
        for params, low, high in zip(profile["params"], profile["loss_min"], profile["loss_max"], strict=True):
            axes.plot([params / factor] * 2, [low, high], color=color, linewidth=0.7)
        axes.plot(profile["params"] / factor, profile["loss"], marker, color=color, markersize=3.5)
        log_params = np.log(profile["params"].to_numpy(float))
        parabola = np.polynomial.Polynomial.fit(log_params, profile["loss"].to_numpy(float), 2)
        along = np.linspace(log_params[0], log_params[-1], 100)
        axes.plot(np.exp(along) / factor, parabola(along), color=color, linewidth=0.9)
        lowest = minima[(minima["flops"] == flops) & (minima["method"] == "quadratic")].iloc[0]
        axes.plot(lowest["params"] / factor, lowest["loss"], **MINIMUM, **(EDGE if lowest["is_edge"] else INNER))
    log_axis(axes, "x", profiles["params"] / factor)
    axes.margins(x=0.08, y=0.1)
    few_ticks(axes.yaxis, 5)
    title_panel(axes, arm.title, MOST_COLUMNS)


def _size_unit(arm: _IsoflopArm, found: IsoFlop) -> tuple[float, str]:
    """Returns the factor and the unit of the axis for the sizes of one arm."""
    return scaled(float(arm.of(found.profiles)["params"].max()), "parameters")


def _tone(router: str, place: int, number: int) -> tuple[float, float, float]:
    """Returns the router's colour, which is paler for a smaller budget."""
    share = 1.0 if number == 1 else PALEST + (1 - PALEST) * place / (number - 1)
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(router_color(router)))
    return red, green, blue


def _draw_laws(axes: Axes, quantity: str, arms: Sequence[_IsoflopArm], found: IsoFlop) -> None:
    minima = found.minima
    factor_x, unit_x = scaled(float(minima["flops"].max()), "FLOP")
    factor, unit = scaled(float(minima[quantity].max()), UNITS[quantity])
    inner = minima[~minima["is_edge"].astype(bool)]
    for arm in arms:
        style = line_style(arm.router, arm.variant)
        for method, marker, fill in METHOD_MARKS:
            points = arm.of(inner[inner["method"] == method])
            if method == "quadratic":
                _draw_bars(axes, points, quantity, (factor_x, factor), style["color"])
                _draw_law(axes, arm.of(found.laws), points, quantity, (factor_x, factor), style)
            mark: dict[str, Any] = {"marker": marker, "fillstyle": fill, "color": style["color"], "linestyle": "none"}
            axes.plot(points["flops"] / factor_x, points[quantity] / factor, **mark)
    if inner.empty:
        place: dict[str, Any] = {"xycoords": "axes fraction", "ha": "center", "va": "center"}
        axes.annotate("every minimum lies at an edge", (0.5, 0.5), **place, fontsize=6.5, color=GREY)
        axes.set(xticks=[], yticks=[])
    else:
        _scale_axes(axes, inner["flops"] / factor_x, inner[quantity] / factor)
    axes.set_xlabel(f"Training compute C ({unit_x})")
    axes.set_ylabel(LABELS[quantity].format(unit))


def _scale_axes(axes: Axes, x: pd.Series[float], y: pd.Series[float]) -> None:
    """Makes both axes logarithmic, with a tick at each budget where these are few.

    The axes keep a minimum width, so that two methods that nearly agree do not seem to differ much.
    """
    log_axis(axes, "x", x)
    log_axis(axes, "y", y)
    budgets = sorted({float(f"{value:.2g}") for value in x})
    if len(budgets) <= MOST_TICKS:
        named_ticks(axes, budgets, [f"{value:g}" for value in budgets])
    axes.margins(0.1)
    axes.set_xlim(min(axes.get_xlim()[0], x.min() / LEAST_RATIO), max(axes.get_xlim()[1], x.max() * LEAST_RATIO))
    axes.set_ylim(min(axes.get_ylim()[0], y.min() / LEAST_RATIO), max(axes.get_ylim()[1], y.max() * LEAST_RATIO))


def _draw_bars(axes: Axes, points: pd.DataFrame, quantity: str, factors: tuple[float, float], color: str) -> None:
    for row in points.dropna(subset=[f"{quantity}_low"]).to_dict("records"):
        ends = [row[f"{quantity}_low"] / factors[1], row[f"{quantity}_high"] / factors[1]]
        axes.plot([row["flops"] / factors[0]] * 2, ends, color=color, linewidth=0.7)


def _draw_law(
    axes: Axes,
    laws: pd.DataFrame,
    points: pd.DataFrame,
    quantity: str,
    factors: tuple[float, float],
    style: dict[str, Any],
) -> None:
    """Draws the law of the parabolas' minima, from the smallest to the largest budget that it was fitted to."""
    for law in laws[(laws["method"] == "quadratic") & (laws["quantity"] == quantity)].to_dict("records"):
        flops = np.array([points["flops"].min(), points["flops"].max()])
        axes.plot(flops / factors[0], law["factor"] * flops ** law["exponent"] / factors[1], **style)


def _arm_keys(arms: Sequence[_IsoflopArm]) -> list[Key]:
    return [(Line2D([], [], **line_style(arm.router, arm.variant), marker="o"), arm.title) for arm in arms]


def _keys(found: IsoFlop, budgets: Sequence[str], arms: Sequence[Key]) -> list[Key]:
    """Returns the keys of the budgets and the methods, with those of `arms` between them."""
    keys: list[Key] = [
        (Line2D([], [], color=_tone("dense", i, len(budgets)), marker=MARKERS[i % len(MARKERS)], markersize=3.5), name)
        for i, name in enumerate(budgets)
    ]
    keys.append((Line2D([], [], **MINIMUM, **INNER), "Minimum of the parabola"))
    if found.minima["is_edge"].any():
        keys.append((Line2D([], [], **MINIMUM, **EDGE), "At the edge, not used"))
    keys += arms
    keys.append((Line2D([], [], color=GREY, marker="o", fillstyle="none", linestyle="none"), "Akima's minimum"))
    if (found.minima["method"] == METHOD).any():
        keys.append(
            (Line2D([], [], color=GREY, marker="D", fillstyle="none", linestyle="none"), "Parametric law's minimum")
        )
    if found.minima["params_low"].notna().any():
        keys.append((Line2D([], [], color=GREY, linewidth=0.7), "95% interval over configurations"))
    return keys


def _foot(found: IsoFlop) -> list[str]:
    """Returns the lines of the foot: the exponents of the parabolas' laws, and the data that was not used."""
    lines = []
    for (study, arm), laws in found.laws[found.laws["method"] == "quadratic"].groupby(["study", "arm"], sort=False):
        exponents = [_exponent(law) for law in laws.to_dict("records")]
        lines.append(f"{arm}{f', {study}' if study else ''}: {'; '.join(exponents)}.")
    for (study, arm), found_here in found.disagreements.groupby(["study", "arm"], sort=False):
        laws = found.laws[(found.laws["study"] == study) & (found.laws["arm"] == arm)]
        lines.append(f"{arm}{f', {study}' if study else ''}: {disagreement_text(found_here, laws)}")
    if len(lines) > MOST_LAWS:
        lines = [*lines[:MOST_LAWS], f"And {len(lines) - MOST_LAWS} more on other arms: see the numbers."]
    rest = len(found.refused) - LONGEST_LINES
    return [*lines, *found.refused[:LONGEST_LINES], *([f"And {rest} more that were not used."] if rest > 0 else [])]


def _exponent(law: dict[Any, Any]) -> str:
    name = {"params": "N*", "images": "D*"}[law["quantity"]]
    known = law["exponent_low"] is not None and law["exponent_low"] == law["exponent_low"]
    why = "two budgets" if law["num_budgets"] == MIN_BUDGETS else "trunks are shared"
    interval = f"{law['exponent_low']:.2f} to {law['exponent_high']:.2f}" if known else f"no interval: {why}"
    low, high = law["exponent_cells_low"], law["exponent_cells_high"]
    cells = f", {low:.2f} to {high:.2f} over configurations" if low == low else ""
    return f"{name} grows as C to the {law['exponent']:.2f} ({interval} over {law['num_budgets']} budgets{cells})"
