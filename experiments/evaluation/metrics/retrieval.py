"""`caption-retrieval` is the share of samples whose own caption is the nearest of 100, by a network of their data.

The network (`two_tower.py`) is small and is wrong about many true images. Its share of right answers on the true images
of the same captions, among the same 100, is therefore recorded beside every score: it is what images as good as the
true ones would get, not a bound. `caption_pool.py` chooses the captions. The score on combinations that are held out of
training is a value of its own. It is not CLIP score, whose network is the user's (`clip_score.py`).

Legend: B images, F features.
"""

from __future__ import annotations

from typing import cast

from experiments.config.features_record import Retrieval
from experiments.config.metric_row import CaptionSplit, MetricRow
from experiments.evaluation.metrics.intervals import wilson
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.metrics.true_images import PreparedPictures
from experiments.evaluation.sampling.finite import require_finite_images
from experiments.records.record_types import EvalRow

SCORES: dict[CaptionSplit, str] = {"validation": "caption-retrieval", "held_out": "caption-retrieval-held-out"}
TRUE = "-true"
"""The end of the name of the value of true images."""

ACCURACY = "accuracy_on_true_images"


class CaptionRetrieval(SampledMetric):
    """Counts the samples whose own caption is the nearest, by split."""

    not_compared = frozenset({ACCURACY})  # it is a result

    def __init__(self, task: MetricTask) -> None:
        """Begins with no images. Raises `ConfigError` where the set has no network, or no two captions that differ."""
        self._task, self._pictures = task, _pictures_of(task)
        self._right: dict[CaptionSplit, list[bool]] = {split: [] for split in _splits(task)}
        self._network = self._pictures.network
        for split in self._right:
            self._pictures.pool(split)

    @classmethod
    def recorded_under(cls, row: MetricRow, task: MetricTask) -> dict[str, EvalRow]:
        """Returns the conditions of each score, with the network and the number of images of its own."""
        pictures = _pictures_of(task)
        found: dict[str, EvalRow] = {}
        for split in _splits(task):
            captions = task.captions(split)
            settings = {**task.base.settings, **pictures.settings, "captions": pictures.pool(split).num_compared}
            like = task.base.model_copy(update={"num_samples": len(captions.rows), "settings": settings})
            found[SCORES[split]] = like
            found[SCORES[split] + TRUE] = like.model_copy(update={"num_samples": len(set(captions.rows))})
        return found

    def add(self, batch: LabelledBatch) -> None:
        """Adds images in [-1, 1]. Raises `RunFailedError` where they are not finite."""
        require_finite_images(batch.images_BCHW)
        features_BF = self._pictures.features_of(batch.images_BCHW)
        pool = self._pictures.pool(batch.split)
        self._right[batch.split] += pool.is_right(self._network, features_BF, batch.rows).tolist()

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns for each split the score of the samples, and that of the true images of the same captions."""
        found = []
        for split, right in self._right.items():
            pool, rows = self._pictures.pool(split), sorted(set(self._task.captions(split).rows))
            sampled = Retrieval(num_right=sum(right), num_images=len(right), num_captions=pool.num_compared)
            true = pool.of_true_images(self._network, rows)
            settings = {**base.settings, **self._pictures.settings, "captions": pool.num_compared}
            beside = {**settings, ACCURACY: round(true.num_right / true.num_images, 3)}  # figures show it at their foot
            found.append(_row(base.model_copy(update={"settings": beside}), SCORES[split], sampled))
            found.append(_row(base.model_copy(update={"settings": settings}), SCORES[split] + TRUE, true))
        return found


def _row(base: EvalRow, metric: str, counted: Retrieval) -> EvalRow:
    low, high = wilson(counted.num_right, counted.num_images)
    value = counted.num_right / counted.num_images
    update = {"metric": metric, "value": value, "interval_low": low, "interval_high": high}
    return base.model_copy(update={**update, "num_samples": counted.num_images})


def _pictures_of(task: MetricTask) -> PreparedPictures:
    return cast(PreparedPictures, task.true_images)  # the metric's row says that it measures pictures only


def _splits(task: MetricTask) -> list[CaptionSplit]:
    """Returns the splits that have images."""
    return [split for split in SCORES if task.captions(split).rows]
