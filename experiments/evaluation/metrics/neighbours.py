"""Precision, recall and memorisation of generated images, from nearest neighbours in features of a named network.

Precision is the share of generated images that lie among true ones, and recall the share of true images that lie among
generated ones. "Among" means inside a ball around an image of the other set that reaches its third nearest neighbour in
its own set (Kynkaanniemi et al. 2019, arXiv 1904.06991, section 2). A model that shows little of the data, but that
well, has high precision and low recall, which a Frechet distance cannot tell from the reverse.

The network is that of the data (`true_images.py`): `features.py` for scenes, `two_tower.py` for a prepared set.

The paper compares as many images of both kinds. Here there are always 4,096 true scenes: the balls of a few outliers
among a few hundred are so wide that noise lies inside (with 200 true images of 16 pixels, noise has the precision 0.57
and grey frames 1.0; with 4,096 both have 0.0, and held-out true images 0.92 to 0.93).

Memorisation compares how near generated images come to images of training with how near held-out true images come to
the same ones. A model that copies is nearer than held-out images are.

Legend: N generated images, M true images, F features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from experiments.config.metric_row import MetricRow
from experiments.evaluation.metrics.intervals import normal_interval, wilson
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.metrics.true_images import AT_ONCE, PreparedPictures
from experiments.evaluation.sampling.finite import require_finite_images
from experiments.records.record_types import EvalRow

NEIGHBOURS = 3
"""The neighbour to which the ball around an image reaches, as in the paper."""
REFERENCE_IMAGES = 4096
"""The number of true images for precision and recall."""
MAX_TRAINING_IMAGES = 8192
"""The number of images of training, the first ones, among which the nearest is looked for."""
KEPT_BALLS = 0.9
"""The share of the balls around pictures that count, the smaller ones. The paper's realism score keeps half of them."""
PRECISION_OF_TRUE = "precision-pictures-true"
COPIED_QUANTILE = 0.01
"""A generated image counts as a copy where it is nearer to training than all but this share of held-out images."""


class _Features(SampledMetric):
    """Collects the features of the images."""

    def __init__(self, task: MetricTask) -> None:
        self._true, self._num_shown = task.true_images, num_shown(task)
        self._batches: list[Tensor] = []

    @classmethod
    def own_settings(cls, row: MetricRow, task: MetricTask) -> dict[str, Any]:
        """Returns the checksum of the network, and how many true images are compared."""
        return {**task.true_images.settings, **cls.num_compared(task)}

    @classmethod
    @abstractmethod
    def num_compared(cls, task: MetricTask) -> dict[str, int]:
        """Returns how many true images are compared, by the name of the setting that says so."""

    def add(self, batch: LabelledBatch) -> None:
        """Adds images in [-1, 1]. Raises `RunFailedError` where they are not finite."""
        require_finite_images(batch.images_BCHW)
        self._batches.append(self._true.features_of(batch.images_BCHW))

    def _features_NF(self) -> Tensor:
        return torch.cat(self._batches)


class PrecisionRecall(_Features):
    """Computes precision and recall against `REFERENCE_IMAGES` images of the validation split."""

    recorded_as: ClassVar[tuple[str, str]] = ("precision-shapes", "recall-shapes")

    @classmethod
    def num_compared(cls, task: MetricTask) -> dict[str, int]:
        """Returns the number of true images."""
        return {"reference_images": task.true_images.num_validation(REFERENCE_IMAGES)}

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the rows of both, with the interval of a share of the images, whose balls are held fixed."""
        made_NF, true_MF = self._features_NF(), self._reference_MF()
        precision = share_inside(made_NF, *self._balls())
        recall = share_inside(true_MF, made_NF, ball_radii(made_NF))
        found = zip(self.recorded_as, (precision, recall), (len(made_NF), len(true_MF)), strict=True)
        return [self._row(base, metric, share, total, len(made_NF)) for metric, share, total in found]

    def _row(self, base: EvalRow, metric: str, share: float, total: int, num_samples: int) -> EvalRow:
        low, high = wilson(round(share * total), total)
        found = {"metric": metric, "value": share, "interval_low": low, "interval_high": high}
        return base.model_copy(update={**found, "num_samples": num_samples})

    def _reference_MF(self) -> Tensor:
        return self._true.validation_features(REFERENCE_IMAGES)

    def _balls(self) -> tuple[Tensor, Tensor]:
        """Returns the centres [M, F] and the radii [M] of the balls around true images."""
        true_MF = self._reference_MF()
        return self._true.remembered("balls", lambda: (true_MF, ball_radii(true_MF)))


class PrecisionRecallOfPictures(PrecisionRecall):
    """Computes both against training images of a prepared set, and the precision of validation images.

    A validation split has too few images. Pictures also have outliers, around which a ball reaches as far as noise
    lies, so that the tenth of the balls that are largest is left out.
    """

    recorded_as = ("precision-pictures", "recall-pictures")

    @classmethod
    def num_compared(cls, task: MetricTask) -> dict[str, int]:
        """Returns the number of training images, of which each counts once."""
        return {"reference_images": task.true_images.num_training(REFERENCE_IMAGES)}

    @classmethod
    def recorded_under(cls, row: MetricRow, task: MetricTask) -> dict[str, EvalRow]:
        """Returns the conditions with the network; the precision of true images has as many as there are."""
        found = super().recorded_under(row, task)
        num_true = task.true_images.num_validation(task.conditions.num_images)
        found[PRECISION_OF_TRUE] = found[PRECISION_OF_TRUE].model_copy(update={"num_samples": num_true})
        return found

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the rows of precision, recall, and the precision of as many validation images, or all there are."""
        rows = super().rows(base)
        held_out_NF = self._true.validation_features(len(self._features_NF()))
        precision, num_true = share_inside(held_out_NF, *self._balls()), len(held_out_NF)
        return [*rows, self._row(base, PRECISION_OF_TRUE, precision, num_true, num_true)]

    def _reference_MF(self) -> Tensor:
        return cast(PreparedPictures, self._true).spread_training_features(REFERENCE_IMAGES)

    def _balls(self) -> tuple[Tensor, Tensor]:
        """Returns the centres and the radii of the smaller balls."""
        centre_MF, radius_M = super()._balls()
        is_kept_M = radius_M <= torch.quantile(radius_M, KEPT_BALLS)
        return centre_MF[is_kept_M], radius_M[is_kept_M]


class Memorisation(_Features):
    """Compares how near generated images and held-out ones are to their nearest image of training.

    The held-out images are of the validation split, as many as there are generated ones, or all that there are.
    """

    recorded_as: ClassVar[tuple[str, str, str]] = (
        "nearest-training-distance", "nearest-training-distance-held-out", "copied-share"
    )  # fmt: skip

    @classmethod
    def num_compared(cls, task: MetricTask) -> dict[str, int]:
        """Returns the number of training images; scenes always have as many held-out images as generated ones."""
        return {"training_images": num_shown(task)}

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the mean distance of generated and of held-out images, and the share of generated ones copied."""
        made_NF, trained_MF = self._features_NF(), self._true.training_features(self._num_shown)
        made_N = nearest_distances(made_NF, trained_MF)
        true_N = nearest_distances(self._true.validation_features(len(made_NF)), trained_MF)
        num_copied, num_images = copied(made_N, true_N), len(made_N)
        found = (
            (made_N.mean().item(), _interval(made_N)),
            (true_N.mean().item(), _interval(true_N)),
            (num_copied / num_images, wilson(num_copied, num_images)),
        )
        like = base.model_copy(update={"num_samples": num_images})
        return [
            like.model_copy(update={"metric": metric, "value": value, "interval_low": low, "interval_high": high})
            for metric, (value, (low, high)) in zip(self.recorded_as, found, strict=True)
        ]


class MemorisationOfPictures(Memorisation):
    """Compares the pictures of a prepared set, of which each training image counts once however often it was seen."""

    recorded_as = (
        "nearest-training-distance-pictures", "nearest-training-distance-validation-pictures", "copied-share-pictures"
    )  # fmt: skip

    @classmethod
    def num_compared(cls, task: MetricTask) -> dict[str, int]:
        """Returns the number of different training images, and that of validation images."""
        true = task.true_images
        return {
            "training_images": true.num_training(num_shown(task)),
            "reference_images": true.num_validation(task.conditions.num_images),
        }


def num_shown(task: MetricTask) -> int:
    """Returns how many of the first images of its data the weights of a run were trained on, or `MAX_TRAINING_IMAGES`.

    A run that began from the weights of another one goes through the data from the first image again. Of data that
    both have, the longer of them has therefore seen all that the other has.
    """
    parent = None if task.run is None else task.run.record.parent
    before = () if parent is None else parent.ancestors
    return min(MAX_TRAINING_IMAGES, max([task.base.images_seen, *(each.images for each in before)]))


def ball_radii(points_NF: Tensor) -> Tensor:
    """Returns the distance of each point to its `NEIGHBOURS`-th nearest neighbour among them, float64 [N]."""
    assert len(points_NF) > NEIGHBOURS
    # A point is its own nearest neighbour, at distance 0, and does not count.
    return torch.cat([some.kthvalue(NEIGHBOURS + 1, dim=1).values for some in _distances(points_NF, points_NF)])


def share_inside(points_NF: Tensor, centres_MF: Tensor, radius_M: Tensor) -> float:
    """Returns the share of points inside the ball around any of the centres (equation 1 of the paper)."""
    is_inside_N = torch.cat([(some <= radius_M).any(dim=1) for some in _distances(points_NF, centres_MF)])
    return is_inside_N.double().mean().item()


def nearest_distances(points_NF: Tensor, others_MF: Tensor) -> Tensor:
    """Returns the distance of each point to the nearest of the others, float64 [N]."""
    return torch.cat([some.amin(dim=1) for some in _distances(points_NF, others_MF)])


def copied(made_N: Tensor, true_N: Tensor) -> int:
    """Returns how many distances lie below the `COPIED_QUANTILE` of those of true images."""
    return int((made_N < torch.quantile(true_N, COPIED_QUANTILE)).sum())


def _interval(distance_N: Tensor) -> tuple[float | None, float | None]:
    return normal_interval(distance_N.tolist(), 0.0, torch.inf)


def _distances(points_NF: Tensor, others_MF: Tensor) -> Iterator[Tensor]:
    """Yields Euclidean distances in float64 from some of the points at a time, [`AT_ONCE`, M] each.

    All distances among 50,000 images, as many as FID takes, would fill 20 GB.
    """
    others_MF = others_MF.double()
    for some_NF in torch.split(points_NF.double(), AT_ONCE):
        yield torch.cdist(some_NF, others_MF)
