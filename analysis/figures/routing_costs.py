"""Panels of `comparison` for how evenly and at which cost each arm routed, one for each quantity that was recorded.

They are MaxVio (E max(load) - 1, 0 where experts are used evenly), the share of expert pairs that make up 95% of
co-activations, executed over planned FLOPs per image in training and inference, how the loss with the decision of
training differs from that with the decision of inference, and the peak memory of training. Panels share their rows with
those above. A quantity that no arm has gets no panel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures.grid import Key
from analysis.run_table import is_missing
from analysis.style import GREY, arm_rows, few_ticks, router_color

Mark = dict[str, Any]
SOLID: Mark = {"marker": "o", "markersize": 3.5}
RING: Mark = {"marker": "o", "fillstyle": "none", "markersize": 6, "markeredgewidth": 0.8}
TRAINING: Mark = {"marker": ">", "markersize": 3.5}


class Cost(NamedTuple):
    """One quantity: the label of its panel, its values in the arm table by mark, and the value that changes nothing."""

    label: str
    values: tuple[tuple[Mark, Callable[[pd.DataFrame], pd.Series[float]]], ...]
    neutral: float | None = None
    keys: tuple[Key, ...] = ()


def _percent_more(executed: str, planned: str) -> Callable[[pd.DataFrame], pd.Series[float]]:
    return lambda arms: 100 * (arms[executed] / arms[planned].astype(float) - 1)


EXECUTED_KEY = (Line2D([], [], color=GREY, linestyle="none", **TRAINING), "Executed in training")
COSTS = (
    Cost("MaxVio\n(E max load - 1)", ((SOLID, lambda arms: arms["max_violation"]),)),
    Cost("Pairs of experts\nin use (%)", ((SOLID, lambda arms: 100 * arms["pair_usage"]),)),
    Cost(
        "Executed FLOPs\nabove planned\n(%)",
        (
            (TRAINING, _percent_more("executed_train_flops_per_image", "planned_train_flops_per_image")),
            (SOLID, _percent_more("executed_flops_per_image", "flops_per_image")),
            (RING, _percent_more("executed_flops_per_image_same_t", "flops_per_image")),
        ),
        0.0,
        (EXECUTED_KEY,),
    ),
    Cost(
        "Change of loss,\ndecided as in\ntraining (%)",
        ((SOLID, _percent_more("val_loss_training_decision", "val_loss_mean")),),
        0.0,
    ),
    Cost("Peak memory of\ntraining (GiB)", ((SOLID, lambda arms: arms["peak_memory_gib"]),)),
)
OF_EVERY_RUN = COSTS[-1:]
"""Quantities that every run has, which alone make no second row of panels."""


def known_costs(arms: pd.DataFrame) -> list[Cost]:
    """Returns the quantities that some arm has, or none where these are only those of `OF_EVERY_RUN`."""
    known = [cost for cost in COSTS if any(values(arms).notna().any() for _, values in cost.values)]
    return known if any(cost not in OF_EVERY_RUN for cost in known) else []


def draw_costs(panels: Sequence[Axes], arms: pd.DataFrame, costs: Sequence[Cost]) -> None:
    """Draws a panel for each of `costs`, with a row for each of `arms`; a dash says that a value is missing."""
    rows = list(arms[["arm", "routing", "variant"]].itertuples(index=False, name=None))
    for axes, cost in zip(panels, costs, strict=True):
        arm_rows(axes, rows, named=axes is panels[0])
        found = [(mark, values(arms).to_list()) for mark, values in cost.values]
        for y, router in enumerate(arms["routing"]):
            given = [(mark, values[y]) for mark, values in found if not is_missing(values[y])]
            for mark, value in given:
                at = y - 0.18 if mark is TRAINING else y
                axes.plot(value, at, color=router_color(router), linestyle="none", clip_on=False, zorder=3, **mark)
            if not given:
                axes.annotate("–", (0.04, y), xycoords=("axes fraction", "data"), va="center", color=GREY)
        if cost.neutral is None:
            axes.set_xlim(left=0)
        else:
            axes.axvline(cost.neutral, color=GREY, linewidth=0.6, zorder=1)
            axes.margins(x=0.1)
        few_ticks(axes.xaxis, 3)
        axes.set_xlabel(cost.label)
