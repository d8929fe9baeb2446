"""Measures `routing`: which tokens the routed layers process, on true scenes and while images are sampled.

`routing_maps.py` defines and measures the values. This file fits them to the contract of a metric, and writes the maps
and the compute map to their own files in the run's folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.config.data_sets import data_set_of
from experiments.config.metric_row import MetricRow
from experiments.evaluation.inference.routing_maps import (
    DIVERGENCE,
    DROPPED,
    RATIO,
    TIMES,
    RoutingWatcher,
    measure_scenes,
    scene_row,
)
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.sampling.settings import Conditions
from experiments.records.record_types import EvalRow
from experiments.records.writer import append_routing_maps


class RoutedTokens(SampledMetric):
    """Watches the routed layers along the sampling path, and measures them on true scenes at the end."""

    def __init__(self, task: MetricTask) -> None:
        assert task.run is not None
        self._task, self._run = task, task.run
        kinds = self._kinds = task.captions("validation").kinds(task.config)
        self._has_scenes = data_set_of(task.config).has_scenes
        self.watcher: RoutingWatcher = RoutingWatcher(
            task.run, kinds, first_of_kinds(kinds) if self._has_scenes else []
        )

    @classmethod
    def recorded_under(cls, row: MetricRow, task: MetricTask) -> dict[str, EvalRow]:
        """Returns the conditions of each value; no sampler is involved in the ratio on scenes."""
        assert task.run is not None
        along_path = {DROPPED: task.base, DIVERGENCE: task.base}
        if not data_set_of(task.config).has_scenes:
            return along_path
        return {**along_path, RATIO: scene_row(task.run, task.conditions)}

    @classmethod
    def num_own_calls(cls, conditions: Conditions) -> int:
        """Returns how often the model is called on scenes."""
        return -(-conditions.num_images // conditions.batch_images) * len(TIMES)

    def add(self, batch: LabelledBatch) -> None:
        """Keeps the images of the compute map."""
        self.watcher.end_batch(batch.images_BCHW)

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Writes the maps to their own files, and returns the rows of values.

        Without scenes, maps along the sampling path have positions and classes too, and no image is drawn.
        """
        along_path = self.watcher.measured(base, None if self._has_scenes else {"class": self._kinds})
        if not self._has_scenes:
            append_routing_maps(self._run.run_dir, along_path.maps)
            return along_path.evals
        on_scenes = measure_scenes(self._run, self._task.conditions, self._task.on_call)
        append_routing_maps(self._run.run_dir, [*on_scenes.maps, *along_path.maps])
        captions = self._task.captions("validation").captions
        self.watcher.compute_map(dict(enumerate(captions))).save(self._run.run_dir.compute_map)
        return [*on_scenes.evals, *along_path.evals]


def first_of_kinds(kinds: Sequence[str]) -> list[int]:
    """Returns the index of the first of each kind, in order."""
    return [place for place, kind in enumerate(kinds) if kind not in kinds[:place]]
