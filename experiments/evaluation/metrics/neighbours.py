"""Precision, recall and memorisation of generated scenes, from nearest neighbours in the features of `features.py`.

Precision is the share of generated images that lie among true ones, and recall the share of true images that lie among
generated ones. "Among" means inside a ball around an image of the other set that reaches its third nearest neighbour in
its own set (Kynkaanniemi et al. 2019, arXiv 1904.06991, section 2). A model that shows little of the data, but that
well, has high precision and low recall, which a Frechet distance cannot tell from the reverse.

The paper compares as many images of both kinds. Here there are always 4,096 true ones: the balls of a few outliers
among a few hundred are so wide that noise lies inside (with 200 true images of 16 pixels, noise has the precision 0.57
and grey frames 1.0; with 4,096 both have 0.0, and held-out true images 0.92 to 0.93).

Memorisation compares how near generated images come to images of training with how near held-out true images come to
the same ones. A model that copies is nearer than held-out images are.

Legend: N generated images, M true images, F features.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from experiments.data.scenes.features import features_of, weights_digest
from experiments.data.scenes.scene import Split
from experiments.evaluation.metrics.frechet import REFERENCE_FIRST, render_batch
from experiments.evaluation.metrics.intervals import normal_interval, wilson
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.sampling.finite import require_finite_images
from experiments.records.record_types import EvalRow

NEIGHBOURS = 3
"""The neighbour to which the ball around an image reaches, as in the paper."""
REFERENCE_IMAGES = 4096
"""The number of true images for precision and recall."""
MAX_TRAINING_IMAGES = 8192
"""The number of images of training, the first ones, among which the nearest is looked for."""
COPIED_QUANTILE = 0.01
"""A generated image counts as a copy where it is nearer to training than all but this share of held-out images."""
RENDERED_AT_ONCE = 256


class _Features(SampledMetric):
    """Collects the features of the images."""

    def __init__(self, task: MetricTask) -> None:
        self._seed, self._size = task.config.data.seed, task.config.data.image_size
        self._images_seen = task.base.images_seen
        self._batches: list[Tensor] = []

    def add(self, batch: LabelledBatch) -> None:
        """Adds images in [-1, 1]. Raises `RunFailedError` where they are not finite."""
        require_finite_images(batch.images_BCHW)
        self._batches.append(features_of(batch.images_BCHW))

    def _features_NF(self) -> Tensor:
        return torch.cat(self._batches)

    def _held_out_MF(self, num_images: int) -> Tensor:
        return rendered_features(self._seed, self._size, "validation", REFERENCE_FIRST, num_images)


class PrecisionRecall(_Features):
    """Computes precision and recall against `REFERENCE_IMAGES` renders of the validation split."""

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the rows of both, with the interval of a share of the images, whose balls are held fixed."""
        made_NF, true_MF = self._features_NF(), self._held_out_MF(REFERENCE_IMAGES)
        precision = share_inside(made_NF, true_MF, _reference_radii(self._seed, self._size))
        recall = share_inside(true_MF, made_NF, ball_radii(made_NF))
        settings = base.settings | {"features": weights_digest(), "reference_images": REFERENCE_IMAGES}
        rows = []
        for metric, share, total in (
            ("precision-shapes", precision, len(made_NF)),
            ("recall-shapes", recall, REFERENCE_IMAGES),
        ):
            low, high = wilson(round(share * total), total)
            found = {"metric": metric, "value": share, "interval_low": low, "interval_high": high}
            rows.append(base.model_copy(update={**found, "num_samples": len(made_NF), "settings": settings}))
        return rows


class Memorisation(_Features):
    """Compares how near generated images and held-out ones are to their nearest image of training."""

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the mean distance of generated and of held-out images, and the share of generated ones copied."""
        made_NF, num_training = self._features_NF(), min(MAX_TRAINING_IMAGES, self._images_seen)
        trained_MF = rendered_features(self._seed, self._size, "train", 0, num_training)
        made_N = nearest_distances(made_NF, trained_MF)
        true_N = nearest_distances(self._held_out_MF(len(made_NF)), trained_MF)
        num_copied, num_images = copied(made_N, true_N), len(made_N)
        found = {
            "nearest-training-distance": (made_N.mean().item(), _interval(made_N)),
            "nearest-training-distance-held-out": (true_N.mean().item(), _interval(true_N)),
            "copied-share": (num_copied / num_images, wilson(num_copied, num_images)),
        }
        settings = base.settings | {"features": weights_digest(), "training_images": num_training}
        like = base.model_copy(update={"num_samples": num_images, "settings": settings})
        return [
            like.model_copy(update={"metric": metric, "value": value, "interval_low": low, "interval_high": high})
            for metric, (value, (low, high)) in found.items()
        ]


@lru_cache(maxsize=8)
def rendered_features(data_seed: int, image_size: int, split: Split, first: int, num_images: int) -> Tensor:
    """Returns the features [M, F] of `num_images` renders of a split, from the one with the number `first` on."""
    numbers = range(first, first + num_images)
    parts = [numbers[start : start + RENDERED_AT_ONCE] for start in range(0, num_images, RENDERED_AT_ONCE)]
    return torch.cat([features_of(render_batch(data_seed, image_size, part, split)) for part in parts])


def ball_radii(points_NF: Tensor) -> Tensor:
    """Returns the distance of each point to its `NEIGHBOURS`-th nearest neighbour among them, float64 [N]."""
    assert len(points_NF) > NEIGHBOURS
    # A point is its own nearest neighbour, at distance 0, and does not count.
    return _distances(points_NF, points_NF).kthvalue(NEIGHBOURS + 1, dim=1).values


@lru_cache(maxsize=4)
def _reference_radii(data_seed: int, image_size: int) -> Tensor:
    return ball_radii(rendered_features(data_seed, image_size, "validation", REFERENCE_FIRST, REFERENCE_IMAGES))


def share_inside(points_NF: Tensor, centres_MF: Tensor, radius_M: Tensor) -> float:
    """Returns the share of points inside the ball around any of the centres (equation 1 of the paper)."""
    return (_distances(points_NF, centres_MF) <= radius_M).any(dim=1).double().mean().item()


def nearest_distances(points_NF: Tensor, others_MF: Tensor) -> Tensor:
    """Returns the distance of each point to the nearest of the others, float64 [N]."""
    return _distances(points_NF, others_MF).amin(dim=1)


def copied(made_N: Tensor, true_N: Tensor) -> int:
    """Returns how many distances lie below the `COPIED_QUANTILE` of those of true images."""
    return int((made_N < torch.quantile(true_N, COPIED_QUANTILE)).sum())


def _interval(distance_N: Tensor) -> tuple[float | None, float | None]:
    return normal_interval(distance_N.tolist(), 0.0, torch.inf)


def _distances(points_NF: Tensor, others_MF: Tensor) -> Tensor:
    """Returns Euclidean distances [N, M] in float64."""
    return torch.cdist(points_NF.double(), others_MF.double())
