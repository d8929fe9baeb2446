"""The look of all figures, and the functions that write them as PNG, SVG and CSV of the plotted numbers.

Every router has one colour (`router_looks.py`) and every size one marker, in all figures. Arms also differ in dashes
and fill, so that a figure can be printed in grey. Where all models have one size, a marker may stand for the router.
Figures are made at the text width of a paper, so that a label of 7 points has 7 points on the page.

Figures are `matplotlib.figure.Figure` without pyplot, which has global state and may open a display. What a figure
shows is defined in `figures/`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter
from matplotlib.transforms import Affine2D, Affine2DBase, ScaledTranslation, Transform, blended_transform_factory

from analysis.escaping import figure_text, for_csv
from analysis.router_looks import DASHES, router_look
from experiments.records.outputs import output_files
from experiments.text import printable

TEXT_WIDTH_INCHES = 6.75
DOTS_PER_INCH = 200
GREY = "#666666"
LIGHT_GREY = "#D0D0D0"

# fmt: off
SIZE_MARKERS: dict[str, str | tuple[int, Literal[1], int]] = {
    "nano": "o", "micro": "s", "mini": "^", "S": "D", "B": "v", "L": "P", "XL": "X", "XXL": "*", "3XL": "p", "M": "h",
    "dit-s-2": (4, 1, 0), "dit-b-2": (4, 1, 45), "dit-l-2": (6, 1, 0), "dit-xl-2": (12, 1, 0),  # points, star, angle
    "sd3-15": (3, 1, 0), "sd3-18": (3, 1, 60), "sd3-21": (5, 1, 36), "sd3-24": (7, 1, 0), "sd3-30": (8, 1, 0),
    "sd3-38": (9, 1, 0),
    "dit-moe-S": "<", "dit-moe-B": ">", "dit-moe-L": "d", "dit-moe-XL": "H", "dit-moe-G": "8",
}
# fmt: on
LOG_FROM_RATIO = 4.0
"""Values that differ by more than this factor go on a logarithmic axis."""
WIDEST_LETTER = 0.9
"""An upper bound of the width of a letter, in units of the size of the font."""
TEXT_TO_PATH = TextToPath()
FILLS = ("full", "none", "left", "bottom", "right", "top")

KEY_POINTS = 7
USUAL_NAME_INCHES = 1.4
"""Width of the names of arms for which figures of the width of a text leave room."""

# `Any`: releases of matplotlib differ in how they type the keys, and all refuse an unknown one.
RC_PARAMS: Any = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": KEY_POINTS,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "axes.formatter.useoffset": False,
    "svg.hashsalt": "ecdit",
    "savefig.dpi": DOTS_PER_INCH,
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure and the numbers it shows."""

    figure: Figure
    numbers: pd.DataFrame


@contextmanager
def paper_style() -> Iterator[None]:
    """Sets matplotlib's defaults plus `RC_PARAMS`, so that a user's own settings do not change figures."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC_PARAMS)
        yield


def line_style(router: str, variant: int) -> dict[str, Any]:
    """Returns the colour and dashes of an arm's line."""
    look = router_look(router)
    dashes = DASHES[(look.dashes + 2 * variant) % len(DASHES)]
    return {"color": look.color, "linestyle": (0, dashes) if dashes else "-"}


def router_color(router: str) -> str:
    """Returns the colour of a router: its row's, or a spare one, also where its plugin is not loaded."""
    return router_look(router).color


def marker_style(router: str, variant: int, preset: str) -> dict[str, Any]:
    """Returns the router's colour, the size's marker and the fill that distinguishes arms of one router.

    The marker is that of the router where `preset` is empty, in figures of one size that have a panel for each family.
    """
    look = router_look(router)
    return {
        "color": look.color,
        "marker": SIZE_MARKERS[preset] if preset else look.marker,
        "fillstyle": FILLS[variant % len(FILLS)],
        "markerfacecoloralt": "white",
        "linestyle": "none",
    }


def shown(label: str) -> str:
    """Prepares a label of records for a figure, where `f_c` is set as a formula."""
    return figure_text(label).replace("f_c", "$f_c$")


def lowest_to_highest(num_seeds: pd.Series[int]) -> str:
    """Names the bars and bands over seeds for a legend, given the `num_seeds` of everything that is drawn."""
    fewest, most = int(num_seeds.min()), int(num_seeds.max())
    return f"Lowest to highest of {most if fewest == most else f'{fewest} to {most}'} seeds"


def scaled(largest: float, unit: str) -> tuple[float, str]:
    """Returns a factor and an axis unit for values up to `largest`: seconds become hours, others get an SI prefix."""
    if unit == "s":
        return (3600.0, "h") if largest >= 3 * 3600 else (1.0, "s")
    if unit == "images":
        return (1e6, "millions") if largest >= 2e6 else (1e3, "thousands")
    if unit == "parameters":
        return (1e9, "billions") if largest >= 2e9 else (1e6, "millions") if largest >= 2e6 else (1e3, "thousands")
    for factor, prefix in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if largest >= factor:
            return factor, prefix + unit
    return 1.0, unit


def arm_rows(axes: Axes, arms: Sequence[tuple[str, str, int]], named: bool = True, preset: str = "") -> None:
    """Sets one row per (label, router, variant), the first on top.

    `named` writes the labels at the left, beside a sample of the arm's line. `preset` puts its marker on that line.
    """
    _rows(axes, [label for label, _, _ in arms], named)
    for row, (_, router, variant) in enumerate(arms if named else []):
        place: dict[str, Any] = {
            "transform": _points_left_of(axes),
            "clip_on": False,
            "solid_capstyle": "butt",
            "linewidth": 1.4,
        }
        axes.plot([-18, -2], [row, row], **line_style(router, variant), **place)
        if preset:
            marker = marker_style(router, variant, preset) | {"markersize": 3.5}
            axes.plot(-10, row, transform=_points_left_of(axes), clip_on=False, **marker)


def point_rows(axes: Axes, arms: Sequence[tuple[str, str, int]], preset: str, named: bool = True) -> None:
    """Sets one row per (label, router, variant); `named` writes labels at the left, beside the marker of the points."""
    _rows(axes, [label for label, _, _ in arms], named)
    for row, (_, router, variant) in enumerate(arms if named else []):
        axes.plot(-10, row, transform=_points_left_of(axes), clip_on=False, **marker_style(router, variant, preset))


def few_ticks(axis: Axis, most: int = 4) -> None:
    """Sets between two and about `most` labelled ticks, so that their labels never touch."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))


def is_wide(values: pd.Series[float]) -> bool:
    """Says whether positive values differ by a factor of more than `LOG_FROM_RATIO`."""
    return bool(0 < LOG_FROM_RATIO * values.min() < values.max())


def log_axis(axes: Axes, which: Literal["x", "y"], values: pd.Series[float]) -> None:
    """Makes an axis logarithmic, with ticks for `values`, which are positive."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    if is_wide(values):
        decades = math.log10(values.max() / values.min())
        axis.set_major_locator(LogLocator(subs=(1,) if decades > 2 else (1, 2, 5)))
    else:
        few_ticks(axis)
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def wrapped(text: str, width_inches: float, points: float) -> list[str]:
    """Breaks `text` into lines of at most `width_inches`; a word that is wider than a line is broken."""
    lines: list[str] = []
    for word in map(printable, text.split()):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text_inches(longer, points) <= width_inches:
            lines[-1] = longer
        elif _text_inches(word, points) <= width_inches:
            lines.append(word)
        else:
            lines += textwrap.wrap(word, max(1, int(width_inches * 72 / (points * WIDEST_LETTER))))
    return lines


def place_text(figure: Figure, place: tuple[float, float], text: str, **options: Any) -> None:
    """Writes one line without formulas, with its upper left corner `place` inches from that of the figure."""
    width, height = figure.get_size_inches()
    options.setdefault("va", "top")
    figure.text(place[0] / width, 1 - place[1] / height, printable(text), **options, parse_math=False)


def write_png(figure: Figure, path: Path) -> None:
    """Writes a PNG with the dots per inch of `figure`. The same figure gives the same bytes.

    Raises `OutputError` for a file that ecdit did not write, and `StorageError`.
    """
    with output_files([path]) as (part,), paper_style():
        figure.savefig(part, dpi="figure", format="png", metadata={"Software": None})


def write_drawing(drawing: Drawing, folder: Path, name: str) -> list[Path]:
    """Writes `name`.png, .svg and .csv into `folder`. The same numbers give the same bytes.

    Raises `OutputError` for a file that ecdit did not write, and `StorageError`.
    """
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg", "csv")]
    with output_files(paths) as (png, svg, csv), paper_style():
        drawing.figure.savefig(png, metadata={"Software": None})
        drawing.figure.savefig(svg, metadata={"Date": None, "Creator": None})
        for_csv(drawing.numbers).to_csv(csv, index=False)
    return paths


def key_text_inches(label: str) -> float:
    """Returns the width of a label in a legend. That of a formula is an estimate that counts its marks as letters."""
    return _text_inches(printable(label), KEY_POINTS)


def _text_inches(text: str, points: float) -> float:
    width, _, _ = TEXT_TO_PATH.get_text_width_height_descent(text, FontProperties(size=points), ismath=False)
    return float(width) / 72


def _rows(axes: Axes, labels: Sequence[str], named: bool) -> None:
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), [shown(label) if named else "" for label in labels])
    axes.tick_params(axis="y", length=0, pad=20 if named else 2)
    axes.grid(axis="y", visible=False)
    if named:
        _make_room_for_names(axes, labels)


def _make_room_for_names(axes: Axes, labels: Sequence[str]) -> None:
    """Widens the figure where names at the left are long, which would squeeze panels until their labels touch."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    longer = max(map(key_text_inches, labels), default=0.0) - USUAL_NAME_INCHES
    figure.set_figwidth(max(figure.get_figwidth(), TEXT_WIDTH_INCHES + longer))


def _points_left_of(axes: Axes) -> Transform:
    """Returns a transform with x in points from the left edge of `axes` and y in data coordinates."""
    left_edge = ScaledTranslation(0, 0, cast("Affine2DBase", axes.transAxes))
    points = Affine2D().scale(1 / 72) + axes.figure.dpi_scale_trans + left_edge
    return blended_transform_factory(points, axes.transData)
