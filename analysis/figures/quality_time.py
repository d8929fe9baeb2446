"""`quality-time` shows the quality of images against measured seconds per image, in the form of EC-DIT's figure 4.

Left is the score of the exact judge, right the Frechet distance where it was measured. Each arm and size has one point:
colour shows the router, fill the arm, and the marker the size. Points are means over seeds, and bars go from the lowest
to the highest. For one seed the bar of the score is the 95% interval over its images. Only times count that were
measured with the steps, sampler, guidance and precision with which the images were made.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analysis.conditions import USUAL, MetricRows
from analysis.figures.panels import Look, draw_arm_points, draw_panels
from analysis.load_records import MissingDataError, Records
from analysis.scores import EVALUATE, arm_means, measured_panels, panel_points, seconds_like
from analysis.style import Drawing, few_ticks, is_wide, log_axis, router_color
from experiments.config.metrics import values_in

LOOK = Look(rows="study", height_inches=2.3, has_markers=True)
MIN_SECONDS = 2.0
"""Times are shown in seconds where the longest is at least this, and in milliseconds otherwise."""


def draw_quality_time(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers, one row per metric, setup and arm.

    Raises `MissingDataError` where no run has a score or distance, or none a time with the same sampler settings.
    """
    panels = measured_panels(records, table, values_in("quality-time"))
    times = _times(seconds_like(records, table, panels[0]), panels[0])
    points = panel_points(panels).merge(times, on=["setup", "arm"]).sort_values("seconds", ignore_index=True)
    factor, unit = (1.0, "s") if points["seconds"].max() >= MIN_SECONDS else (1e-3, "ms")

    def draw(axes: Axes, mine: pd.DataFrame, _measured: MetricRows) -> None:
        for _, arm in mine.groupby("arm", sort=False):
            draw_arm_points(axes, arm, arm["seconds"] / factor)
            _draw_spread_of_times(axes, arm, factor)
        few_ticks(axes.xaxis)
        if is_wide(points["seconds"]):
            log_axis(axes, "x", points["seconds"] / factor)
        axes.margins(x=0.1)
        axes.set_xlabel(f"Measured time per image ({unit})")

    return Drawing(draw_panels(points, panels, LOOK, draw), points.drop(columns="variant"))


def _times(seconds: pd.DataFrame, like: MetricRows) -> pd.DataFrame:
    """Returns the mean, lowest and highest time over seeds, by setup and arm."""
    if seconds.empty:
        given = {name: like.conditions[name] for name in ("steps", "sampler", "guidance") if name in like.conditions}
        options = [f"--{name} {str(value).removesuffix('.0')}" for name, value in given.items()]
        start, stop = (like.conditions.get(name, USUAL[name]) for name in ("guidance_start", "guidance_stop"))
        if (start, stop) != (0, 1):
            options.append(f"--guidance-interval {start:g},{stop:g}")
        if (channels := like.conditions.get("guidance_channels")) is not None:
            options.append(f"--guidance-channels {channels}")
        raise MissingDataError(
            "No time was measured with the steps, sampler, guidance and precision of the scored images.",
            f"{EVALUATE} --metrics inference-time {' '.join(options)} RUNS",
        )
    means = arm_means(seconds).rename(columns={"value": "seconds", "low": "seconds_low", "high": "seconds_high"})
    return means[["setup", "arm", "seconds", "seconds_low", "seconds_high"]]


def _draw_spread_of_times(axes: Axes, arm: pd.DataFrame, factor: float) -> None:
    bar: dict[str, Any] = {"color": router_color(arm["routing.name"].iloc[0]), "linewidth": 0.7}
    for point in arm.to_dict("records"):
        axes.plot([point["seconds_low"] / factor, point["seconds_high"] / factor], [point["value"]] * 2, **bar)
