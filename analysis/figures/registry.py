"""The registry of figures: the name, description, function and aliases of each.

A figure is a function of the records and their run table. A new one is added as a module and a row of `FIGURES`, or as
the row of a plugin. Figures are written to files in `style.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from analysis.diverged_runs import diverged_table, divergence_note, shown_with
from analysis.executed_flops import notes_on_parents
from analysis.figures.alignment import draw_alignment
from analysis.figures.arm_limits import ALL_LIMITS, Limit, within_limits, write_notes
from analysis.figures.best_guidance import draw_best_guidance
from analysis.figures.capacity import draw_capacity
from analysis.figures.comparison import draw_comparison
from analysis.figures.compute_map import draw_compute_map_of_runs
from analysis.figures.curve_collapse import draw_curve_collapse
from analysis.figures.ema_width import draw_ema_width
from analysis.figures.expert_classes import draw_expert_classes
from analysis.figures.expert_scaling import draw_expert_scaling
from analysis.figures.guidance import draw_guidance
from analysis.figures.image_quality import draw_image_quality
from analysis.figures.inference_time import draw_inference_time
from analysis.figures.isoflop import draw_isoflop
from analysis.figures.loss_convergence import draw_loss_convergence
from analysis.figures.memory import draw_memory
from analysis.figures.per_timestep_loss import draw_per_timestep_loss
from analysis.figures.quality_over_training import draw_quality_over_training
from analysis.figures.quality_time import draw_quality_time
from analysis.figures.routing import draw_routing
from analysis.figures.scaling_law import draw_scaling_law
from analysis.figures.specialization import draw_specialization
from analysis.load_records import Records
from analysis.parameter_counts import ACTIVATED, Count
from analysis.run_table import with_losses
from analysis.smoothed_losses import with_smoothed_losses
from analysis.style import Drawing
from experiments.errors import EcditError, PluginError, did_you_mean
from experiments.plugins.sources import is_plugin, named_plugin, plugin_errors


@dataclass(frozen=True)
class FigureEntry:
    """One figure. Its `draw` raises `MissingDataError` when the runs lack the data that it needs."""

    name: str
    description: str
    draw: Callable[..., Drawing]
    """The function of the records and their run table, and of `parameters` (a `Count`) if it `has_parameters`."""
    aliases: tuple[str, ...] = ()
    draw_beside_paper: Callable[..., Drawing] | None = None
    """The function that also draws the values that EC-DIT printed, where there are any."""
    has_parameters: bool = False
    """Says whether the figure shows the size of models, which can be counted in several ways."""
    is_fit: bool = False
    """Says whether the figure fits a law to final losses, which may be those of smoothed curves."""
    of_losses: bool = False
    """Says whether the figure shows final losses; runs that have none, such as imported weights, are then left out."""
    by_compute: bool = False
    """Says whether runs are compared by training images or FLOPs; a note then says that those of parents count."""
    limits: tuple[Limit, ...] = ALL_LIMITS
    """The figure draws only the best of these where there are many; one that chooses its runs itself has no limits."""

    def drawing(
        self, records: Records, table: pd.DataFrame, paper_values: bool = False, parameters: Count = ACTIVATED,
        smoothed: bool = False,
    ) -> Drawing:  # fmt: skip
        """Draws the figure within its limits, with printed values where wanted and known; `parameters` counts sizes.

        With `smoothed`, laws are fitted to the ends of smoothed curves, and the foot says what that gains. Raises
        `MissingDataError` where a figure of final losses has none to show.
        """
        if self.of_losses:
            table = with_losses(table)
        gain = ""
        if smoothed and self.is_fit:
            table, found = with_smoothed_losses(records, table)
            gain = str(found)
        draw = self.draw_beside_paper if paper_values and self.draw_beside_paper else self.draw
        shown = within_limits(table, self.limits)
        with plugin_errors("figure", self.name):
            drawing: Any = draw(records, shown.table, **({"parameters": parameters} if self.has_parameters else {}))
        if is_plugin("figure", self.name) and not isinstance(drawing, Drawing):
            where, answer = named_plugin("figure", self.name), type(drawing).__name__
            raise PluginError(f"{where}: draw answers a {answer}, a Drawing is expected.")
        checked: Drawing = drawing
        diverged = divergence_note(shown_with(diverged_table(records), shown.table))
        before = notes_on_parents(shown.table) if self.by_compute else []
        write_notes(checked.figure, [note for note in (gain, diverged, *before, *shown.notes) if note])
        return checked


FIGURES: dict[str, FigureEntry] = {
    entry.name: entry
    for entry in (
        FigureEntry(
            "loss-convergence",
            "Training and validation loss against images, FLOPs and seconds, and where dense's final loss is reached.",
            draw_loss_convergence,
            ("paper-fig8",),
            partial(draw_loss_convergence, paper_values=True),
            of_losses=True,
            by_compute=True,
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
            of_losses=True,
            by_compute=True,
        ),
        FigureEntry(
            "comparison",
            "What each router gains and costs: loss, images to dense's loss, dropped tokens, speed.",
            draw_comparison,
            by_compute=True,
        ),
        FigureEntry(
            "alignment",
            "Score of the exact judge against parameters, by router and number of experts.",
            draw_alignment,
            ("paper-fig3",),
            partial(draw_alignment, paper_values=True),
            has_parameters=True,
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
            by_compute=True,
        ),
        FigureEntry(
            "compute-map",
            "Generated images beside the number of experts that processed each of their tokens.",
            draw_compute_map_of_runs,
            ("paper-fig6",),
            limits=(),
        ),
        FigureEntry(
            "specialization",
            "What each expert does by time, position and kind of caption; experts on objects and on background.",
            draw_specialization,
            limits=(),
        ),
        FigureEntry(
            "expert-classes",
            "Which experts process the images of which class, by layer and time, with the even share in white.",
            draw_expert_classes,
            limits=(),
        ),
        FigureEntry(
            "guidance",
            "Score, Frechet distance and divergence of the two branches against the guidance scale.",
            draw_guidance,
        ),
        FigureEntry(
            "best-guidance",
            "The guidance scale of the best score and distance of each arm, against parameters.",
            draw_best_guidance,
            has_parameters=True,
        ),
        FigureEntry(
            "ema-width",
            "Validation loss, score and Frechet distance against the width of the average of the weights.",
            draw_ema_width,
        ),
        FigureEntry(
            "image-quality",
            "Frechet distance, FID and CLIP score against parameters, by router.",
            draw_image_quality,
            ("paper-fig7",),
            partial(draw_image_quality, paper_values=True),
            has_parameters=True,
        ),
        FigureEntry(
            "scaling-law",
            "Validation loss against training compute with a fitted power law by router, and how well it predicts.",
            draw_scaling_law,
            of_losses=True,
            by_compute=True,
            limits=("conditions",),
            is_fit=True,
        ),
        FigureEntry(
            "isoflop",
            "Loss of every size at equal training FLOPs, and how the best size and training grow with compute.",
            draw_isoflop,
            of_losses=True,
            by_compute=True,
            has_parameters=True,
            limits=(),
            is_fit=True,
        ),
        FigureEntry(
            "curve-collapse",
            "Loss curves of every size and length, each normalised to its own end: one curve if tuned well.",
            draw_curve_collapse,
            of_losses=True,
            by_compute=True,
            limits=("conditions",),
        ),
        FigureEntry(
            "expert-scaling",
            "Validation loss against the number of experts at fixed activation, by router.",
            draw_expert_scaling,
            draw_beside_paper=partial(draw_expert_scaling, paper_values=True),
            of_losses=True,
            limits=("setups",),
        ),
        FigureEntry(
            "capacity",
            "Validation loss against the size of the routing group and the capacity factor.",
            draw_capacity,
            draw_beside_paper=partial(draw_capacity, paper_values=True),
            of_losses=True,
            limits=("setups",),
        ),
        FigureEntry(
            "memory",
            "Peak memory of training and of generating images, measured beside estimated.",
            draw_memory,
            draw_beside_paper=partial(draw_memory, paper_values=True),
        ),
        FigureEntry(
            "per-timestep-loss",
            "Validation loss by tenth of t, and its difference from dense, by router.",
            draw_per_timestep_loss,
            of_losses=True,
        ),
    )
}


def find_figure(name: str) -> FigureEntry:
    """Returns the figure with this name or alias. Raises `EcditError` with the closest name when there is none."""
    by_name = {known: figure for figure in FIGURES.values() for known in (figure.name, *figure.aliases)}
    if name not in by_name:
        raise EcditError(f"{name!r} is not a figure.", did_you_mean(name, [*by_name, "all"]))
    return by_name[name]
