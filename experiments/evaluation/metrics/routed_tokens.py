"""Measures `routing`: which tokens the routed layers process, on true scenes and while images are sampled.

`routing_maps.py` defines and measures the values. This file fits them to the contract of a metric, and writes the maps
and the compute map to their own files in the run's folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.config.metrics import MetricRow
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
        kinds = [scene.kind for scene in task.captions("validation").scenes]
        self.watcher: RoutingWatcher = RoutingWatcher(task.run, kinds, first_of_kinds(kinds))

    @classmethod
    def recorded_under(cls, row: MetricRow, task: MetricTask) -> dict[str, EvalRow]:
        """Returns the conditions of each value; no sampler is involved in the ratio on scenes."""
        assert task.run is not None
        return {DROPPED: task.base, RATIO: scene_row(task.run, task.conditions), DIVERGENCE: task.base}

    @classmethod
    def num_own_calls(cls, conditions: Conditions) -> int:
        """Returns how often the model is called on scenes."""
        return -(-conditions.num_images // conditions.batch_images) * len(TIMES)

    def add(self, batch: LabelledBatch) -> None:
        """Keeps the images of the compute map."""
        self.watcher.end_batch(batch.images_BCHW)

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Writes the maps to their own files, and returns the rows of values."""
        along_path = self.watcher.measured(base)
        on_scenes = measure_scenes(self._run, self._task.conditions, self._task.on_call)
        append_routing_maps(self._run.run_dir, [*on_scenes.maps, *along_path.maps])
        captions = self._task.captions("validation").captions
        self.watcher.compute_map(dict(enumerate(captions))).save(self._run.run_dir.compute_map)
        return [*on_scenes.evals, *along_path.evals]


def first_of_kinds(kinds: Sequence[str]) -> list[int]:
    """Returns the index of the first of each kind, in order."""
    return [place for place, kind in enumerate(kinds) if kind not in kinds[:place]]
