"""Every figure by name: what it shows, who draws it, and the aliases it answers to.

A figure is a function of the records and their run table; adding one is adding a row. Writing is in `style.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from analysis.figures.comparison import draw_comparison
from analysis.figures.inference_time import draw_inference_time
from analysis.figures.loss_convergence import draw_loss_convergence
from analysis.figures.routing import draw_routing
from analysis.load import Records
from analysis.style import Drawing
from experiments.errors import EcditError, did_you_mean


@dataclass(frozen=True)
class FigureEntry:
    """One figure. `draw` raises a `MissingDataError` when the runs do not hold what it needs."""

    name: str
    description: str
    draw: Callable[[Records, pd.DataFrame], Drawing]
    aliases: tuple[str, ...] = ()


FIGURES = (
    FigureEntry(
        "loss-convergence",
        "Training and validation loss against images, FLOPs and seconds, and where dense's final loss is reached.",
        draw_loss_convergence,
    ),
    FigureEntry(
        "inference-time",
        "Measured seconds per image against quality, and theoretical beside measured overhead over dense.",
        draw_inference_time,
    ),
    FigureEntry(
        "routing",
        "Validation loss by router over training and at the end, with the spread over seeds.",
        draw_routing,
    ),
    FigureEntry(
        "comparison",
        "What each router gains and costs: loss, images to dense's loss, dropped tokens, speed.",
        draw_comparison,
    ),
)


def find_figure(name: str) -> FigureEntry:
    """The figure called `name` or with that alias; an `EcditError` with the closest name when there is none."""
    by_name = {known: figure for figure in FIGURES for known in (figure.name, *figure.aliases)}
    if name not in by_name:
        raise EcditError(f"{name!r} is not a figure.", did_you_mean(name, [*by_name, "all"]))
    return by_name[name]
