"""Choose the rows of a metric of sampled images that were measured under equal conditions and may share a figure.

A value depends on the guidance scale and on its *conditions*: weights, number of images, seed of the noise, and every
other setting of the sampler. A figure shows values of one set of conditions, under which every run that has the metric
was measured. Where several sets qualify, EMA weights are preferred to raw ones, then more points along the curve, then
more images, then what was written last. Where none qualifies, the figure is refused and the difference is named.
`batch_images` is a condition only among the runs that record it, which are those whose routing depends on the batch.
Rows of reconstructed averages (`ema_width`) appear only in the figure along this width, never beside others.

The rows are made in `logits.py`, which also takes means over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from analysis.comparable import first_difference
from analysis.load_records import MissingDataError
from experiments.config.metric_row import RecordedValue

Along = Literal["images_seen", "guidance", "ema_width"]
"""The quantity on the horizontal axis of a curve of a metric."""

BESIDE_CONDITIONS = ("guidance", "batch_images", "ema_width")
SAMPLING = ("steps", "sampler", "shift", "guidance_start", "guidance_stop", "guidance_channels", "precision")
"""Settings of the sampler that two metrics must share to describe the same images."""

USUAL = {"shift": 1.0, "guidance_start": 0.0, "guidance_stop": 1.0, "seed": 0}
"""Default values of conditions, which the foot of a figure does not mention."""


WEIGHTS_TEXTS = {"ema": "EMA", "raw": "raw"}
MEASURE_ALIKE = "Evaluate all of them alike, or name only the folders that belong together."


@dataclass(frozen=True)
class MetricRows:
    """Comparable rows of one metric, the conditions they share, and `num_without`: how many runs lack the metric."""

    metric: RecordedValue
    rows: pd.DataFrame
    conditions: dict[str, Any]
    num_without: int


def conditions_of(rows: pd.DataFrame) -> list[str]:
    """Returns the conditions of each row as JSON text, equal where they are; `BESIDE_CONDITIONS` are left out."""
    columns = ["weights", "num_samples", "noise_seed", "settings_key"]
    different = rows[columns].drop_duplicates().itertuples(index=False, name=None)
    texts = {key: _conditions_text(*key) for key in different}
    return [texts[key] for key in rows[columns].itertuples(index=False, name=None)]


def same_conditions(rows: pd.DataFrame, metric: RecordedValue, num_runs: int, along: Along | None = None) -> MetricRows:
    """Returns the rows under the best set of conditions that all runs in `rows` share.

    `num_runs` is the number of runs that could have the metric, from which those without it are counted. With `along`,
    sets with more points along that axis are preferred. Raises `MissingDataError` where the runs share no conditions.
    """
    assert len(rows)
    measured = rows["run"].nunique()
    shared = [candidate for candidate in _candidates(rows) if candidate["run"].nunique() == measured]
    if not shared:
        raise MissingDataError(_difference(rows, metric), MEASURE_ALIKE)
    chosen = max(shared, key=lambda candidate: _preference(candidate, along))
    conditions = json.loads(chosen["conditions"].iloc[0])
    batches = chosen["batch_images"].dropna()
    if len(batches):
        conditions["batch_images"] = int(batches.iloc[0])
    return MetricRows(metric, chosen, conditions, num_runs - measured)


def at_one_guidance(measured: MetricRows) -> MetricRows:
    """Returns the rows at one guidance scale, chosen among the scales at which all runs were measured.

    Rows of a value that needs no samples have none, and stay as they are.
    The choice is the scale in the runs' own setting `eval.guidance`, where they agree on one that was measured, and
    otherwise the scale with the best mean. Raises `MissingDataError` where the runs share no scale.
    """
    rows, metric = measured.rows, measured.metric
    if rows["guidance"].isna().all():  # nothing was sampled
        return measured
    by_scale = rows.groupby("guidance")["run"].nunique()
    shared = by_scale.index[by_scale == rows["run"].nunique()].to_numpy(dtype=float)
    if len(shared) == 0:
        raise MissingDataError(f"The runs share no guidance scale of {metric.name}.", MEASURE_ALIKE)
    configured = rows["eval.guidance"].unique()
    if len(configured) == 1 and configured[0] in shared:
        scale = float(configured[0])
    else:
        means = rows[rows["guidance"].isin(shared)].groupby("guidance")["value"].mean()
        goodness = means.to_numpy() if metric.higher_is_better else -means.to_numpy()
        scale = float(means.index.to_numpy(dtype=float)[goodness.argmax()])
    conditions = {**measured.conditions, "guidance": scale}
    return replace(measured, rows=rows[rows["guidance"] == scale], conditions=conditions)


def is_reconstructed(evals: pd.DataFrame) -> pd.Series[bool]:
    """Returns for each row of `evals` whether it is of a reconstructed average, not of one that training keeps."""
    widths = {key: "ema_width" in json.loads(key) for key in evals["settings_key"].unique()}
    return evals["settings_key"].map(widths).astype(bool)


def sampled_like(rows: pd.DataFrame, like: MetricRows, same_weights: bool = True) -> pd.DataFrame:
    """Returns the rows whose images were sampled like those of `like`, judged by the settings that both record.

    Rows of values that need no samples have no guidance scale, and are returned too.
    """
    names = (*SAMPLING, "weights") if same_weights else SAMPLING
    known = _with_guided_channels(like.conditions)
    wanted = {name: known[name] for name in names if name in known}
    alike = {}
    for text in rows["conditions"].unique():
        given = _with_guided_channels(json.loads(text))
        alike[text] = all(given.get(name, value) == value for name, value in wanted.items())
    keep = rows["conditions"].map(alike).astype(bool)
    if "guidance" in like.conditions:
        keep &= (rows["guidance"] == like.conditions["guidance"]) | rows["guidance"].isna()
    return rows[keep]


def _with_guided_channels(conditions: dict[str, Any]) -> dict[str, Any]:
    """Returns `conditions` with the guided channels, which rows of sampled images leave out where they are all."""
    return {"guidance_channels": None, **conditions} if "steps" in conditions else conditions


def foot(panels: Sequence[MetricRows]) -> list[str]:
    """Returns the lines of a figure's foot on how its values were measured; metrics measured alike share a line."""
    names: dict[str, list[str]] = {}
    for measured in panels:
        names.setdefault(_how(measured), []).append(measured.metric.name)
    lines = [f"{', '.join(metrics)}: {how}." for how, metrics in names.items()]
    return [*lines, *(word for measured in panels if (word := _too_few(measured)) is not None)]


def _too_few(measured: MetricRows) -> str | None:
    """Returns a warning about a value over so few images that it says little, or None where there are enough."""
    num_samples, few = measured.conditions["num_samples"], measured.metric.few_images
    if few is None or not measured.metric.says_little(num_samples):
        return None
    return (
        f"{measured.metric.name} says little here: of {num_samples} images, no more than its {few.num_images} "
        f"{few.things}, {few.consequence}."
    )


def _how(measured: MetricRows) -> str:
    known = dict(measured.conditions)
    parts = [f"{known.pop('num_samples'):,} images", f"{WEIGHTS_TEXTS[known.pop('weights')]} weights"]
    if "guidance" in known:
        parts.append(f"guidance {known.pop('guidance'):g}")
    if "steps" in known:
        parts.append(f"{known.pop('steps')} steps of {known.pop('sampler', 'the sampler')}")
    if "batch_images" in known:
        parts.append(f"routed in batches of {known.pop('batch_images')}")
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in known.items() if USUAL.get(name) != value]
    missing = f". Not measured: {measured.num_without} of the runs" if measured.num_without else ""
    return ", ".join(parts) + missing


def _conditions_text(weights: str, num_samples: int, noise_seed: int, settings_key: str) -> str:
    settings = {name: value for name, value in json.loads(settings_key).items() if name not in BESIDE_CONDITIONS}
    return json.dumps({"weights": weights, "num_samples": num_samples, "seed": noise_seed, **settings})


def _candidates(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yields the rows of each set of conditions, once for each batch size where runs record one.

    Rows without a batch size belong to every one of these, because their values do not depend on it.
    """
    for _, group in rows.groupby("conditions", sort=False):
        batches = group["batch_images"]
        for batch in batches.dropna().unique():
            yield group[batches.isna() | (batches == batch)]
        if batches.isna().all():
            yield group


def _preference(candidate: pd.DataFrame, along: Along | None) -> tuple[bool, int, int, int]:
    breadth = len(candidate.drop_duplicates(["run", along])) if along else 0
    first = candidate.iloc[0]
    return first["weights"] == "ema", breadth, int(first["num_samples"]), int(candidate.index.max())


def _difference(rows: pd.DataFrame, metric: RecordedValue) -> str:
    """Returns a sentence that names the first condition in which the last rows of two runs differ."""
    last = rows.drop_duplicates("run", keep="last").reset_index(drop=True)
    given = pd.DataFrame([json.loads(text) for text in last["conditions"]], dtype=object)
    differences = [first_difference(f"{name} of {metric.name}", given[name], last["run"]) for name in given]
    batched = last[last["batch_images"].notna()]
    batches = batched["batch_images"].map("{:g}".format)
    differences.append(first_difference(f"batch_images of {metric.name}", batches, batched["run"]))
    return next(difference for difference in differences if difference is not None)
