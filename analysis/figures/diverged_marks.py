"""Marks in figures for runs that diverged: a cross at the last finite validation loss of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

from analysis.style import GREY, router_color

KEY_TEXT = "Diverged: its last finite loss"
FIRST_CROSS_POINTS = 6.0
"""The distance of the first cross beside a row of a panel from the right edge of the panel, in points."""
CROSS_STEP_POINTS = 6.0


def mark_last_losses(axes: Axes, diverged: pd.DataFrame, x: str, factor: float) -> None:
    """Draws a cross at the last finite loss of each run of `diverged`; one above the panel lies on its upper edge."""
    top = axes.get_ylim()[1]
    for row in diverged.dropna(subset=["last_loss"]).to_dict("records"):
        at, height = row[f"last_{x}"] / factor, min(row["last_loss"], top)
        color = router_color(row["routing.name"])
        axes.plot(at, height, "x", color=color, markersize=5, markeredgewidth=1.2, zorder=5, clip_on=False)


def mark_rows(axes: Axes, arms: Sequence[str], diverged: pd.DataFrame) -> None:
    """Draws a cross for each run that diverged at the right of the row of its arm; `arms` are the rows from the top."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    right_edge = blended_transform_factory(axes.transAxes, axes.transData)
    for y, arm in enumerate(arms):
        for place, router in enumerate(diverged.loc[diverged["arm"] == arm, "routing.name"]):
            points = FIRST_CROSS_POINTS + CROSS_STEP_POINTS * place
            beside = right_edge + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)
            look: dict[str, Any] = {"color": router_color(router), "markersize": 4, "markeredgewidth": 1.2}
            axes.plot(1, y, "x", **look, transform=beside, clip_on=False)


def divergence_keys(diverged: pd.DataFrame, text: str = KEY_TEXT) -> list[tuple[Artist, str]]:
    """Returns the legend key of the crosses, or none where no run diverged."""
    if diverged.empty:
        return []
    return [(Line2D([], [], color=GREY, marker="x", linestyle="none", markersize=5, markeredgewidth=1.2), text)]


def last_points(diverged: pd.DataFrame) -> pd.DataFrame:
    """Returns the numbers of the crosses: arm, seed, where the run diverged, and its last finite validation loss."""
    last = {"last_images_seen": "images_seen", "last_flops": "flops", "last_seconds": "seconds", "last_loss": "loss"}
    rows = diverged[["setup", "arm", "seed", "diverged_at_images", *last]].rename(columns=last)
    return rows.assign(split="diverged")
