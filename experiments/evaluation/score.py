"""Measures the samples of a trained run: they are sampled once, and every metric is computed from the same images.

The captions are those of the first scenes or images of the validation split. For metrics that ask for them, half as
many captions of the held-out split are sampled, too: combinations (such as colour and shape) that training never shows.
Every metric is defined in its own module, and listed in `experiments.config.metrics`.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor

from experiments.config.data_sets import image_kinds
from experiments.config.metric_row import MEASURED_ON, CaptionSplit, ImageKind, MetricRow
from experiments.config.metrics import METRICS, default_metrics, in_recorded_order
from experiments.errors import ConfigError
from experiments.evaluation.metrics.sampled_metric import (
    CaptionSet,
    LabelledBatch,
    MetricTask,
    SampledMetric,
    UserFiles,
    implementation_of,
    with_settings,
)
from experiments.evaluation.sampling.batches import Watcher, num_calls, sampled_batches
from experiments.evaluation.sampling.load_run import LoadedRun
from experiments.evaluation.sampling.settings import Conditions
from experiments.models.dit import DiTOutput
from experiments.plugins.sources import plugin_errors
from experiments.records.record_types import EvalRow
from experiments.records.writer import append_evaluations, stored_rows


def load_resources(metrics: Iterable[str], files: UserFiles) -> dict[str, Any]:
    """Loads what the metrics share between runs, such as networks.

    Raises `ConfigError` for what is missing, and for a network of the user that no setting identifies.
    """
    resources: dict[str, Any] = {}
    for name in metrics:
        with plugin_errors("metric", name):
            resources[name] = implementation_of(METRICS[name]).load(files)
        needs_files = METRICS[name].needs_files
        if needs_files and not getattr(resources[name], "settings", None):
            raise ConfigError(
                f"metric {name!r} reads {' and '.join(needs_files)}, and what its `load` returns has no `settings`: "
                "values of two networks would pass for each other.",
                "Return an object whose `settings` hold the checksum of the network.",
            )
    return resources


def caption_sets(metrics: Iterable[str], task: MetricTask) -> list[CaptionSet]:
    """Returns the captions that the metrics ask for, those of the validation split first."""
    splits: tuple[CaptionSplit, ...] = get_args(CaptionSplit)
    wanted = {split for name in metrics for split in METRICS[name].captions}
    sets = [task.captions(split) for split in splits if split in wanted]
    return [each for each in sets if len(each.numbers)]  # a prepared set may have no held-out images


class MetricSet:
    """Holds the metrics of one task, and gives each of them the images of the captions that it asks for."""

    def __init__(self, metrics: Iterable[str], task: MetricTask) -> None:
        self._task = task
        rows = in_recorded_order(metrics)
        self._metrics: list[tuple[MetricRow, SampledMetric]] = []
        for row in rows:
            with plugin_errors("metric", row.name):
                self._metrics.append((row, implementation_of(row)(task)))
        self.parts = caption_sets((row.name for row in rows), task)

    def watcher(self, part: CaptionSet) -> Watcher | None:
        """Returns what sees every call of the model while the images of `part` are sampled."""
        watchers = [metric.watcher for row, metric in self._metrics if part.split == "validation"]
        given = [watcher for watcher in watchers if watcher is not None]
        return _Watchers(given) if given else None

    def add(self, numbers: range, images_BCHW: Tensor) -> None:
        """Adds a batch of images [B, C, H, W] in [-1, 1]; `numbers` are their numbers."""
        part = next(part for part in self.parts if numbers.start in part.numbers)
        first = part.numbers.start
        here = slice(numbers.start - first, numbers.stop - first)
        batch = LabelledBatch(part.split, numbers, images_BCHW, part.scenes[here], part.rows[here], part.texts[here])
        for row, metric in self._metrics:
            if part.split in row.captions:
                with plugin_errors("metric", row.name):
                    metric.add(batch)

    def rows(self) -> list[EvalRow]:
        """Returns the rows of all metrics. Raises `ConfigError` for a row whose value the metric does not declare."""
        found: list[EvalRow] = []
        for row, metric in self._metrics:
            declared = [value.name for value in row.values]
            with plugin_errors("metric", row.name):
                measured = metric.rows(with_settings(self._task.base, metric.own_settings(row, self._task)))
            for one in measured:
                if one.metric.partition("/")[0] not in declared:
                    raise ConfigError(
                        f"metric {row.name!r} records {one.metric!r}, which is none of its values "
                        f"({', '.join(declared)}).",
                        "Add it to the values in the metric's row.",
                    )
            found += measured
        return found


class _Watchers:
    """Shows the calls of the model to several watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def begin_batch(self, num_images: int, first_number: int) -> None:
        """Begins a batch of `num_images` images, the first of which has the number `first_number`."""
        for watcher in self._watchers:
            watcher.begin_batch(num_images, first_number)

    def watch(self, time: float, output: DiTOutput) -> None:
        """Shows one call at `time`."""
        for watcher in self._watchers:
            watcher.watch(time, output)


class RunScorer:
    """Finds which metrics are missing for one run under one set of conditions, and measures them."""

    def __init__(
        self,
        run: LoadedRun,
        metrics: Sequence[str],
        conditions: Conditions,
        resources: Mapping[str, Any] | None = None,
        again: bool = False,
    ) -> None:
        """Reads what is recorded, which is measured, too, with `again`. `resources` are those of `load_resources`.

        Raises `ConfigError` where a metric cannot measure such images, also where a value is recorded.
        """
        _require_measurable(run, metrics, conditions)
        self.run, self.conditions = run, conditions
        base = conditions.row(run.config, run.images_seen)
        self._task = MetricTask(run.config, conditions, base, resources or {}, run)
        is_dense = run.config.routing.name == "dense"
        possible = [name for name in metrics if not (is_dense and METRICS[name].needs_routed_layers)]
        past = [] if again else list(stored_rows(run.run_dir.evals, EvalRow))
        found = {name: _past_rows(name, past, self._task) for name in possible}
        self.past = [row for rows in found.values() for row in rows]
        self.recorded = [name for name, rows in found.items() if rows]
        self.missing = [name for name, rows in found.items() if not rows]

    def measure(self, on_share: Callable[[float], None] = lambda share: None) -> list[EvalRow]:
        """Returns every row of the metrics asked for. Missing ones are measured and recorded at the end."""
        if not self.missing:
            return self.past
        on_call = _CallCounter(on_share)
        metrics = MetricSet(self.missing, replace(self._task, on_call=on_call))
        sampled = sum(num_calls(len(part.numbers), self.conditions, self.run.config) for part in metrics.parts)
        own = sum(implementation_of(METRICS[name]).num_own_calls(self.conditions) for name in self.missing)
        on_call.total = sampled + own
        for part in metrics.parts:
            batches = sampled_batches(
                self.run.model, self.run.config, part.prompts(self.run.config), self.conditions, part.numbers,
                metrics.watcher(part), on_call,
            )  # fmt: skip
            for batch in batches:
                metrics.add(batch.numbers, batch.images_BCHW)
        rows = metrics.rows()
        append_evaluations(self.run.run_dir, rows)
        return [*self.past, *rows]


class _CallCounter:
    """Counts calls of the model, and passes the finished share of `total` to `on_share`."""

    def __init__(self, on_share: Callable[[float], None]) -> None:
        self._on_share, self._calls, self.total = on_share, 0, 0

    def __call__(self) -> None:
        self._calls += 1
        self._on_share(self._calls / self.total)


def _require_measurable(run: LoadedRun, metrics: Sequence[str], conditions: Conditions) -> None:
    """Raises `ConfigError` where a metric does not fit the run's data, or its images are too small or too few."""
    kinds = image_kinds(run.config)
    for name in metrics:
        row, image_size = METRICS[name], run.config.data.image_size
        if not row.fits(kinds):
            raise _misfit(run, name, kinds)
        if row.compares_captions and run.config.data.num_classes is not None:
            raise ConfigError(
                f"{name} compares images with captions, and {run.run_dir.path} is conditioned on classes.",
                f"Measure without it: --metrics {default_metrics(kinds)[-1]}.",
            )
        others = [other for other in default_metrics(kinds) if image_size >= METRICS[other].min_image_size]
        row.require_image_size(image_size, name, f"Measure without it: --metrics {','.join(others)}.")
        num_images = conditions.num_images
        row.require_num_images(num_images, f"--images {num_images}", f"Ask for {row.min_images} or more.")


def _misfit(run: LoadedRun, name: str, kinds: frozenset[ImageKind]) -> ConfigError:
    """Returns the error for a metric that cannot measure the images of a run; it names those that can."""
    measured_on = " and ".join(MEASURED_ON[kind] for kind in METRICS[name].measured_on)
    fitting = [row.name for row in METRICS.values() if row.implementation and row.fits(kinds) and not row.needs_files]
    return ConfigError(
        f"{run.run_dir.path} was trained with data.name={run.config.data.name}: {name} is measured on {measured_on} "
        "only.",
        f"Measure what fits: --metrics {','.join(fitting)}. For images use `ecdit sample`.",
    )


def _past_rows(name: str, past: Sequence[EvalRow], task: MetricTask) -> list[EvalRow]:
    """Returns the newest rows of a metric under the conditions of `task`; none unless all its values are there."""
    row, metric = METRICS[name], implementation_of(METRICS[name])
    optional = {value.name for value in row.values if value.is_optional}
    found: list[EvalRow] = []
    for value, like in metric.recorded_under(row, task).items():
        rows = _newest(past, like, value, metric.not_compared)
        if not rows and value not in optional:
            return []
        found += rows
    return found


def _newest(past: Sequence[EvalRow], like: EvalRow, value: str, not_compared: frozenset[str]) -> list[EvalRow]:
    """Returns the last row of `value` under the conditions of `like`, and its parts (`value/...`) after it."""
    of_value = [place for place, row in enumerate(past) if row.metric == value]
    places = [place for place in of_value if _same_conditions(past[place], like, not_compared)]
    if not places:
        return []
    rows = [past[places[-1]]]
    for row in past[places[-1] + 1 :]:
        if not row.metric.startswith(f"{value}/"):
            break
        rows.append(row)
    return rows


def _same_conditions(row: EvalRow, like: EvalRow, not_compared: frozenset[str]) -> bool:
    """Returns whether `row` was measured under the conditions of `like`, and under no others.

    A setting that only one of them has makes other conditions: the width of an average, guided channels, a network.
    """
    recorded, wanted = (
        (each.images_seen, each.weights, each.seed, each.num_samples, _compared(each.settings, not_compared))
        for each in (row, like)
    )
    return recorded == wanted


def _compared(settings: Mapping[str, Any], not_compared: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in not_compared}
