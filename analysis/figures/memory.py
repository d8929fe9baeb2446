"""`memory` shows the peak memory of a run beside the calculated estimate.

There is one row per arm. Left is training: the peak that the process recorded (on the accelerator where there is one,
else its resident set) beside the estimate of `experiments/config/memory.py`, by which a sweep decides where a run fits.
Right is the generation of images: the peak of all live tensors beside the weights alone. Points are means over seeds,
and bars go from the lowest to the highest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.arms import arm_list
from analysis.comparable import last_shared_measurement
from analysis.figures.grid import Key, place_keys, seed_key
from analysis.figures.panels import write_foot
from analysis.load_records import MissingDataError, Records
from analysis.paper_values import MEMORY, SOURCES
from analysis.style import GREY, TEXT_WIDTH_INCHES, Drawing, arm_rows, few_ticks, paper_style, router_color, shown
from experiments.config.memory import CONTEXT_BYTES, GIB, memory
from experiments.config.stored import stored_config
from experiments.records.run_folder import RunDir

INFERENCE_PEAK = "inference_peak_memory_gib"
BYTES = {"fp32": 4, "bf16": 2}
COLUMNS = ("training", "estimate", "inference", "weights")


def draw_memory(records: Records, table: pd.DataFrame, paper_values: bool = False) -> Drawing:
    """Returns the figure and its numbers in GiB by setup and arm. Raises `MissingDataError` without any record."""
    points = memory_points(records, table)
    setups = [rows for _, rows in points.groupby("setup", sort=False)]
    with paper_style():
        heights = [0.2 * len(rows) + 0.75 for rows in setups]
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, sum(heights) + 0.6), layout="constrained")
        grid = figure.subplots(len(setups), 2, height_ratios=heights, squeeze=False)
        for (left, right), rows in zip(grid, setups, strict=True):
            arms = arm_list(rows)
            arm_rows(left, arms)
            arm_rows(right, arms, named=False)
            left.set_title(shown(str(rows["setup"].iloc[0])), loc="left", fontweight="bold")
            _draw(left, rows, arms, ("training", "estimate"), "Training, one process")
            _draw(right, rows, arms, ("inference", "weights"), "Generating images")
        place_keys(figure, _keys(points))
        write_foot(figure, _foot(points, paper_values))
    return Drawing(figure, points.drop(columns="variant"))


def memory_points(records: Records, table: pd.DataFrame) -> pd.DataFrame:
    """Returns mean, `_min` and `_max` of each of `COLUMNS` (NaN if unknown) and `num_seeds`, by setup and arm."""
    runs = table.assign(training=table["peak_memory_gib"].astype(float))
    inference = last_shared_measurement(records.evals[records.evals["metric"] == INFERENCE_PEAK], INFERENCE_PEAK)
    runs["inference"] = table["run"].map(inference.set_index("run")["value"])
    if runs[["training", "inference"]].isna().all(axis=None):
        raise MissingDataError(
            "No run has recorded the memory it took.", "Measure it with: ecdit evaluate --metrics inference-time RUNS"
        )
    of_precision = dict(zip(inference["run"], [_precision(given) for given in inference["settings"]], strict=True))
    weights = runs["run"].map(of_precision).map(BYTES) * runs["params_total"] / GIB
    runs = runs.assign(estimate=runs["run"].map(_estimate).astype(float), weights=weights.astype(float))
    groups = runs.groupby(["setup", "arm"], sort=False)
    points = groups[["routing.name", "variant", "device", "params_total"]].first()
    for column in COLUMNS:
        points[[column, f"{column}_min", f"{column}_max"]] = groups[column].agg(["mean", "min", "max"])
    return points.assign(num_seeds=groups["run"].nunique()).reset_index()


def _estimate(run: str) -> float | None:
    """Returns the estimated peak in GiB, or None where the run's folder is gone.

    On an accelerator it excludes the driver's context, because the recorded peak is the allocator's and lacks it too.
    """
    folder = RunDir(Path(run))
    if not folder.run_json.is_file():
        return None
    record = folder.read_run()
    peak = memory(stored_config(record.config, folder.run_json, record.plugin_names), record.on_accelerator).peak
    return (peak - (CONTEXT_BYTES if record.on_accelerator else 0)) / GIB


def _precision(settings: dict[str, Any] | None) -> str | None:
    return (settings or {}).get("precision")


def _draw(
    axes: Axes, points: pd.DataFrame, arms: list[tuple[str, str, int]], columns: tuple[str, str], label: str
) -> None:
    """Draws a filled point for each measurement and an upright line for each estimate."""
    measured, expected = columns
    per_gib, unit = _unit(points[[f"{measured}_max", expected]])
    names = [expected, measured, f"{measured}_min", f"{measured}_max"]
    by_arm = points.set_index("arm")[names] * per_gib
    for row, (arm, router, _) in enumerate(arms):
        at, color = by_arm.loc[arm], router_color(router)
        axes.plot([at[f"{measured}_min"], at[f"{measured}_max"]], [row, row], color=color, linewidth=0.7)
        axes.plot(at[expected], row, "|", color=color, markersize=9, markeredgewidth=1.3, clip_on=False)
        axes.plot(at[measured], row, "o", color=color, markersize=4, clip_on=False)
    if points[measured].isna().all():
        axes.annotate(
            "not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=6.5, color=GREY
        )
        axes.set_xticks([])
    else:
        # The axis starts at 0, so the usual margin, a share of the distance between points, is too small for a mark.
        axes.set_xlim(0, 1.05 * by_arm.max().max())
        few_ticks(axes.xaxis)
    axes.set_xlabel(f"{label} ({unit})")


def _unit(gib: pd.DataFrame) -> tuple[int, str]:
    """Returns the number of units in a GiB and the unit's name, which is MiB where all values are small."""
    return (1024, "MiB") if (gib.fillna(0.0) < 0.1).to_numpy().all() else (1, "GiB")


def _keys(points: pd.DataFrame) -> list[Key]:
    grey: dict[str, Any] = {"color": GREY, "linestyle": "none"}
    return [
        (Line2D([], [], **grey, marker="o", markersize=4), "Measured peak"),
        (Line2D([], [], **grey, marker="|", markersize=9, markeredgewidth=1.3), "Left: estimate, right: weights alone"),
        *seed_key(points),
    ]


def _foot(points: pd.DataFrame, paper_values: bool) -> list[str]:
    devices = ", ".join(sorted(set(points["device"])))
    lines = [f"Device: {devices}. On a CPU training is the resident set of the process, saving included."]
    shares = (points["training"] / points["estimate"]).dropna()
    if len(shares):
        ends = " to ".join(dict.fromkeys(f"{end:.0%}" for end in (shares.min(), shares.max())))
        lines.append(f"In training the measured peak is {ends} of the estimate.")
    if paper_values:
        printed = ", ".join(f"{row.size}-{row.num_experts}E {row.gigabytes_per_device} GB" for row in MEMORY)
        lines.append(f"Printed, inference on each of 8 devices: {printed} ({SOURCES['memory']}).")
    return lines
