"""`curve-collapse` shows the loss curves of each arm, every one normalised to its own end: one curve if tuned well.

Each arm has a panel with the mean validation curve of every size at every length, against the share of its training
compute, from pale (little compute) to full colour (much). The loss is the part above the floor of the arm's law, as a
multiple of that at the end. The foot gives the deviation between curves beside the noise between seeds. The method is
described in `analysis/curve_collapse.py`.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from analysis.curve_collapse import Collapse, collapses
from analysis.figures.grid import Key, named_ticks, num_columns, panel_grid, place_keys, title_panel
from analysis.figures.panels import write_foot
from analysis.isoflop_minima import flops_text
from analysis.load_records import Records
from analysis.style import GREY, Drawing, few_ticks, paper_style, router_color

PALEST = 0.3
"""The share of the router's colour that the curve of least compute has; that of most compute has all of it."""
TICKS = (0.2, 0.3, 0.5, 0.7, 1.0)


def draw_curve_collapse(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers: curves (`split` curve) and one row per arm (`split` collapse).

    Raises `MissingDataError` where no arm has curves of two sizes or lengths.
    """
    found = collapses(records, table)
    with paper_style():
        figure, axes = panel_grid(len(found))
        for panel, each in zip(axes, found, strict=True):
            cells = sorted(each.curves.groupby("setup"), key=lambda cell: float(cell[1]["flops"].iloc[0]))
            for place, (_, cell) in enumerate(cells):
                panel.plot(cell["share"], cell["loss"], color=_tone(each.router, place, len(cells)), linewidth=0.9)
            panel.set_xscale("log")
            named_ticks(panel, TICKS, [f"{tick:g}" for tick in TICKS])
            few_ticks(panel.yaxis, 5)
            panel.set_xlabel("Share of compute (1: end)")
            title_panel(panel, each.name, num_columns(len(found)))
        for panel in axes[:: num_columns(len(found))]:
            panel.set_ylabel("Loss above the floor\n(1: at the end)")
        place_keys(figure, _keys(found))
        write_foot(figure, [str(each) for each in found])
    return Drawing(figure, pd.concat([_numbers(each) for each in found], ignore_index=True))


def _tone(router: str, place: int, number: int) -> tuple[float, float, float]:
    share = 1.0 if number == 1 else PALEST + (1 - PALEST) * place / (number - 1)
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(router_color(router)))
    return red, green, blue


def _keys(found: list[Collapse]) -> list[Key]:
    flops = pd.concat([each.curves["flops"] for each in found])
    ends = ((0, "least", flops.min()), (1, "most", flops.max()))
    grey = {place: 1 - (PALEST + (1 - PALEST) * place) * (1 - to_rgb(GREY)[0]) for place, _, _ in ends}
    return [
        (Line2D([], [], color=(grey[place],) * 3), f"{word.capitalize()} compute ({flops_text(float(value))})")
        for place, word, value in ends
    ]


def _numbers(each: Collapse) -> pd.DataFrame:
    about = {"arm": each.arm, "condition": each.condition.removeprefix(", "), "routing.name": each.router}
    summary = pd.DataFrame([{"deviation": each.deviation, "noise": each.noise, "floor": each.floor}])
    frames = (each.curves.assign(split="curve"), summary.assign(split="collapse"))
    return pd.concat([frame.assign(**about) for frame in frames], ignore_index=True)
