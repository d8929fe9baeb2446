"""`scaling-law` shows the loss of each arm against training compute, its law L = E + A C^-a, and its hold-out error.

The left panel shows the final validation loss of every configuration against training FLOPs C. Each arm has its own
law, fitted to all of its runs of every size, with a 95% band over resampled configurations (or trunks, where these have
several lengths). The right panel shows the relative error with which the same law, fitted without the runs of most
compute, predicts these. An arm whose runs do not identify the law has points but no line, and the foot says what it
lacks. The laws are those of `analysis/laws`. Runs that differ in anything but size, length of training, routing and
seed are drawn in separate panels, and so is each family of routers where these are many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.arms import arm_list
from analysis.executed_flops import train_flops
from analysis.figures.family_panels import FamilyPanel, family_panels, share_limits, share_limits_of_setups
from analysis.figures.grid import LOSS_LABEL, Key, place_keys, seed_key
from analysis.figures.panels import BAND_ALPHA, write_foot
from analysis.laws.bootstrap import Bootstrap, BootstrapEstimate, bootstrap
from analysis.laws.families import condition_families
from analysis.laws.fit import FitError
from analysis.laws.forms import POWER_LAW, POWER_LAW_WITHOUT_FLOOR
from analysis.laws.identify import identified_fit
from analysis.laws.leave_size_out import SizesOut, leave_each_size_out
from analysis.laws.observations import observe
from analysis.laws.predict import LargestOut, leave_largest_out
from analysis.load_records import MissingDataError, Records
from analysis.style import (
    GREY,
    SIZE_MARKERS,
    TEXT_WIDTH_INCHES,
    Drawing,
    arm_rows,
    few_ticks,
    line_style,
    log_axis,
    marker_style,
    paper_style,
    router_color,
    scaled,
    shown,
)

FLOPS = "train_flops"
NUM_RESAMPLES = 300
"""Resamples for each arm: enough for a band, and few enough that a figure of many arms does not take minutes."""
MOST_INK = 0.5
"""The limit of the summed opacity of all bands, so that lines stay visible where the bands overlap."""
NUM_STEPS = 60
"""The number of points at which the line of a law is evaluated."""
LONGEST_LINES = 6
"""The number of laws, and of refusals, that the foot lists; the others are only counted."""


class _ArmLaw(NamedTuple):
    """One arm under one condition: its configurations, and its law and hold-out error or why they are missing.

    `refusal` says why `law` is None, and `not_predicted` why a fitted law has no hold-out error in `largest`.
    """

    condition: str
    arm: tuple[str, str, int]
    points: pd.DataFrame
    law: Bootstrap | None = None
    refusal: str = ""
    largest: LargestOut | None = None
    not_predicted: str = ""
    sizes: SizesOut | None = None

    @property
    def name(self) -> str:
        return self.arm[0] + self.condition


def draw_scaling_law(_records: Records, table: pd.DataFrame, num_resamples: int = NUM_RESAMPLES) -> Drawing:
    """Returns the figure and its numbers; `split` is point, law, parameter, prediction, largest_out or size_out.

    Raises `MissingDataError` where no arm identifies the law.
    """
    laws = list(_arm_laws(table, num_resamples))
    if all(each.law is None for each in laws):
        least = POWER_LAW_WITHOUT_FLOOR.equation
        raise MissingDataError(f"No arm identifies {least}; {laws[0].name}: {laws[0].refusal}")
    conditions = list(dict.fromkeys(each.condition for each in laws))
    with paper_style():
        panels = family_panels(table["routing.name"])
        rows = [(condition, panel, _of_panel(laws, condition, panel)) for condition in conditions for panel in panels]
        rows = [row for row in rows if row[2]]
        heights = [max(2.4, 0.2 * len(mine) + 0.9) for _, _, mine in rows]
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, sum(heights) + 0.9), layout="constrained")
        grid = figure.subplots(len(rows), 2, height_ratios=heights, width_ratios=(1.3, 1), squeeze=False)
        for (left, right), (condition, panel, mine) in zip(grid, rows, strict=True):
            _draw_laws(left, mine, _unit(laws, condition))
            _draw_predictions(right, mine)
            left.set_title(shown(panel.named(condition.removeprefix(", "))), loc="left", fontweight="bold")
        share_limits_of_setups(list(grid[:, 0]), [condition for condition, _, _ in rows])
        share_limits([axes for axes in grid[:, 1] if len(panels) > 1 and len(axes.get_xticks())], "x")
        place_keys(figure, _keys(laws))
        write_foot(figure, _foot(laws, num_resamples))
    return Drawing(figure, pd.concat([frame for each in laws for frame in _numbers(each)], ignore_index=True))


def _arm_laws(table: pd.DataFrame, num_resamples: int) -> Iterator[_ArmLaw]:
    """Yields the law of every arm under every condition, with the baselines first, as in every figure."""
    spent = table.assign(**{FLOPS: train_flops(table)})
    for condition, runs in condition_families(spent):
        for arm in arm_list(runs):
            yield _arm_law(condition, arm, runs[runs["arm"] == arm[0]], num_resamples)


def _arm_law(condition: str, arm: tuple[str, str, int], runs: pd.DataFrame, num_resamples: int) -> _ArmLaw:
    points = runs.groupby(["model.name", FLOPS], as_index=False, sort=False).agg(
        loss=("val_loss", "mean"), loss_min=("val_loss", "min"), loss_max=("val_loss", "max"), num_seeds=("run", "size")
    )
    points = points.sort_values(FLOPS, ignore_index=True)
    observations = observe(runs, {"C": FLOPS, "N": "params_active"}, arm="setup")
    law, refusal, sizes = None, "", None
    for form in (POWER_LAW, POWER_LAW_WITHOUT_FLOOR):
        try:
            law = bootstrap(identified_fit(form, observations), num_resamples=num_resamples)
            break
        except (MissingDataError, FitError) as error:
            refusal = _reason(error)
    if law is None:
        return _ArmLaw(condition, arm, points, refusal=refusal)
    with suppress(MissingDataError):  # an arm of one size has no size to leave out
        sizes = leave_each_size_out(law.fit.form, observations)
    try:
        largest = leave_largest_out(law.fit.form, observations, num_resamples=num_resamples)
    except (MissingDataError, FitError) as error:
        return _ArmLaw(condition, arm, points, law, not_predicted=_reason(error), sizes=sizes)
    return _ArmLaw(condition, arm, points, law, largest=largest, sizes=sizes)


def _reason(error: MissingDataError | FitError) -> str:
    text = str(error)
    for form in (POWER_LAW, POWER_LAW_WITHOUT_FLOOR):
        text = text.removeprefix(f"{form.equation} cannot be fitted: ")
    return text


def _of_panel(laws: Sequence[_ArmLaw], condition: str, panel: FamilyPanel) -> list[_ArmLaw]:
    return [each for each in laws if each.condition == condition and each.arm[1] in panel.routers]


def _unit(laws: Sequence[_ArmLaw], condition: str) -> tuple[float, str]:
    """Returns the factor and the unit of the axis of compute for the laws under one condition."""
    return scaled(max(float(each.points[FLOPS].max()) for each in laws if each.condition == condition), "FLOP")


def _draw_laws(axes: Axes, laws: Sequence[_ArmLaw], compute: tuple[float, str]) -> None:
    points = pd.concat([each.points for each in laws])
    factor, unit = compute
    for each in laws:
        _, router, variant = each.arm
        style = line_style(router, variant)
        for point in each.points.to_dict("records"):
            at = point[FLOPS] / factor
            axes.plot([at, at], [point["loss_min"], point["loss_max"]], color=style["color"], linewidth=0.7)
            axes.plot(at, point["loss"], **marker_style(router, variant, point["model.name"]) | {"markersize": 3.5})
        if each.law is not None:
            curve = _curve(each.points, each.law)
            if each.law.has_intervals:
                axes.fill_between(
                    curve[FLOPS] / factor, curve["loss_low"], curve["loss_high"],
                    color=style["color"], alpha=min(BAND_ALPHA, MOST_INK / len(laws)), linewidth=0,
                )  # fmt: skip
            axes.plot(curve[FLOPS] / factor, curve["loss"], **style)
    log_axis(axes, "x", points[FLOPS] / factor)
    log_axis(axes, "y", points["loss"])
    axes.set_xlabel(f"Training compute C ({unit})")
    axes.set_ylabel(LOSS_LABEL)


def _curve(points: pd.DataFrame, law: Bootstrap) -> pd.DataFrame:
    """Returns the law and its band at `NUM_STEPS` points between the least and the most compute it was fitted to."""
    flops = np.geomspace(points[FLOPS].min(), points[FLOPS].max(), NUM_STEPS)
    band = law.predict({"C": flops})
    rows = [{"loss": at.value, "loss_low": at.low, "loss_high": at.high} for at in band]
    return pd.DataFrame(rows).assign(**{FLOPS: flops})


def _draw_predictions(axes: Axes, laws: Sequence[_ArmLaw]) -> None:
    arm_rows(axes, [each.arm for each in laws], preset=str(laws[0].points["model.name"].iloc[0]))
    for row, each in enumerate(laws):
        if each.largest is None:
            words = "no law" if each.law is None else "not known"
            axes.annotate(words, (0.04, row), xycoords=("axes fraction", "data"), va="center", fontsize=6.5, color=GREY)
            continue
        color, mean = router_color(each.arm[1]), each.largest.mean_error
        axes.plot([100 * mean.low, 100 * mean.high], [row, row], color=color, solid_capstyle="butt")
        axes.plot(100 * mean.value, row, "o", color=color)
    axes.set_xlabel("Predicted over measured loss\nof the largest runs, minus 1 (%)")
    if any(each.largest for each in laws):
        axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
        axes.margins(x=0.1)
        few_ticks(axes.xaxis)
    else:
        axes.set_xticks([])


def _keys(laws: Sequence[_ArmLaw]) -> list[Key]:
    points = pd.concat([each.points for each in laws])
    mark: dict[str, Any] = {"color": GREY, "linestyle": "none", "markersize": 3.5}
    sizes = [(Line2D([], [], marker=SIZE_MARKERS[size], **mark), size) for size in dict.fromkeys(points["model.name"])]
    keys: list[Key] = [*sizes, *seed_key(points)]
    if any(each.law is not None and each.law.has_intervals for each in laws):
        keys.append((Patch(color=GREY, alpha=0.25, linewidth=0), "95% band of the law"))
    if any(each.largest for each in laws):
        keys.append((Line2D([], [], color=GREY, marker="o"), "Prediction error, 95% prediction interval"))
    return keys


def _foot(laws: Sequence[_ArmLaw], num_resamples: int) -> list[str]:
    """Returns the lines of the foot: what was fitted, the fitted laws, and the arms without a law or prediction."""
    fitted = [_law_line(each) for each in laws if each.law is not None]
    refused = [f"{each.name} has no law: {each.refusal}" for each in laws if each.law is None]
    refused += [f"{each.name} is not predicted: {each.not_predicted}" for each in laws if each.not_predicted]
    units = " and ".join(dict.fromkeys(each.law.unit_name for each in laws if each.law is not None))
    what = (
        f"{POWER_LAW.equation}, or {POWER_LAW_WITHOUT_FLOOR.equation} where the data show no floor, "
        f"fitted to all runs of an arm; intervals over {num_resamples:,} resamples of {units}. "
        "Right: fitted without the runs of most compute."
    )
    return [what, *_first(fitted, "more laws"), *_first(refused, "more without")]


def _first(lines: Sequence[str], others: str) -> list[str]:
    rest = len(lines) - LONGEST_LINES
    return [*lines[:LONGEST_LINES], *([f"And {rest} {others}: see the numbers."] if rest > 0 else [])]


def _law_line(each: _ArmLaw) -> str:
    assert each.law is not None
    found, failed = each.law.parameters, each.law.num_failed
    gave = f" ({failed:,} resamples gave no law)" if failed else "" if each.law.has_intervals else f" ({each.law})"
    reach = f"; right at {each.largest.compute_factor:.3g} times the compute" if each.largest else ""
    floor = f"E {found['E']}" if "E" in found else "no floor"
    left = ""
    if each.sizes is not None:
        left = f"; each size left out: mean error {each.sizes.by_size['mean_absolute_error'].mean():.2%}"
    return f"{each.name}: {floor}, a {found['a']}, {each.law.fit.num_points} runs{gave}{reach}{left}."


def _numbers(each: _ArmLaw) -> Iterator[pd.DataFrame]:
    """Yields the numbers of one arm: all that is drawn of it, and the fitted parameters."""
    about = {"condition": each.condition.removeprefix(", "), "arm": each.arm[0], "routing.name": each.arm[1]}
    yield each.points.assign(**about, split="point", refusal=each.refusal or None)
    if each.law is not None:
        yield _curve(each.points, each.law).assign(**about, split="law")
        rows = [_estimated(name, value) for name, value in each.law.parameters.items()]
        yield pd.DataFrame(rows).assign(**about, split="parameter", num_runs=each.law.fit.num_points)
    for errors in _size_errors(each):
        yield errors.assign(**about, split="size_out")
    if each.largest is not None:
        predictions = each.largest.errors.rename(columns={"C": FLOPS})
        yield predictions.assign(**about, split="prediction")
        parameters = [_estimated(name, value) for name, value in each.largest.resamples.parameters.items()]
        rows = [_estimated("mean_error", each.largest.mean_error), *parameters]
        yield pd.DataFrame(rows).assign(**about, split="largest_out", num_runs=each.largest.fit.num_points)


def _size_errors(each: _ArmLaw) -> Iterator[pd.DataFrame]:
    """Yields the errors of one arm on each size that was left out of the fit."""
    if each.sizes is not None:
        yield each.sizes.errors.rename(columns={"C": FLOPS})


def _estimated(name: str, found: BootstrapEstimate) -> dict[str, object]:
    return {"parameter": name, "value": found.value, "value_low": found.low, "value_high": found.high}
