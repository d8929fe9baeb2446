"""Every figure by name: what it shows, who draws it, and the aliases it answers to.

A figure is a function of the records and their run table; adding one is adding a row. Writing is in `style.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from analysis.figures.alignment import draw_alignment
from analysis.figures.comparison import draw_comparison
from analysis.figures.compute_map import draw_compute_map_of_runs
from analysis.figures.guidance import draw_guidance
from analysis.figures.inference_time import draw_inference_time
from analysis.figures.loss_convergence import draw_loss_convergence
from analysis.figures.quality_over_training import draw_quality_over_training
from analysis.figures.quality_time import draw_quality_time
from analysis.figures.routing import draw_routing
from analysis.figures.specialization import draw_specialization
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
        ("paper-fig8",),
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
    FigureEntry(
        "alignment",
        "Score of the exact judge against activated parameters, by router and number of experts.",
        draw_alignment,
        ("paper-fig3",),
    ),
    FigureEntry(
        "quality-time",
        "Score of the exact judge and Frechet distance against measured seconds per image.",
        draw_quality_time,
        ("paper-fig4",),
    ),
    FigureEntry(
        "quality-over-training",
        "Frechet distance and score of the exact judge over training.",
        draw_quality_over_training,
        ("paper-fig5",),
    ),
    FigureEntry(
        "compute-map",
        "Generated images beside the number of experts that processed each of their tokens.",
        draw_compute_map_of_runs,
        ("paper-fig6",),
    ),
    FigureEntry(
        "specialization",
        "What each expert does by time, position and kind of caption; experts on objects and on background.",
        draw_specialization,
    ),
    FigureEntry(
        "guidance",
        "Score, Frechet distance and divergence of the two branches against the guidance scale.",
        draw_guidance,
    ),
)


def find_figure(name: str) -> FigureEntry:
    """The figure called `name` or with that alias; an `EcditError` with the closest name when there is none."""
    by_name = {known: figure for figure in FIGURES for known in (figure.name, *figure.aliases)}
    if name not in by_name:
        raise EcditError(f"{name!r} is not a figure.", did_you_mean(name, [*by_name, "all"]))
    return by_name[name]
