"""`frechet-shapes` and `frechet-pictures` are Frechet distances between generated and true images. They are not FID.

It is the Frechet distance between two normal distributions (Dowson and Landau 1982; for images Heusel et al., arXiv
1706.08500) with the means and covariances of the features of `features.py`, or of the network of a prepared set
(`two_tower.py`). The true images are renders of the validation split, or the validation split of the set.

Only values of the same number of images and of the same `data.image_size` may be compared. For few images the distance
is biased upwards. Images of another size are scaled to the network's 32 pixels, which changes the features of true
renders, too, and so the reference. Figures refuse values of different conditions. With no more images than features
(64) the covariance is singular and the value says little; tables and figures say so.

Legend: B images, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.config.metric_row import MetricRow
from experiments.data.scenes.features import NUM_FEATURES, features_of
from experiments.errors import ConfigError
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.metrics.true_images import AT_ONCE, TrueImages
from experiments.evaluation.sampling.finite import require_finite_images
from experiments.records.record_types import EvalRow

DISTANCE = "frechet-shapes"
REFERENCE_IMAGES = 8192

Floats = NDArray[np.float64]


class Moments:
    """Mean and covariance of feature vectors, accumulated batch by batch in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self, num_features: int = NUM_FEATURES) -> None:
        self.count = 0
        self.mean_F: Floats = np.zeros(num_features)
        self._scatter_FF: Floats = np.zeros((num_features, num_features))

    def add(self, features_BF: Tensor) -> None:
        """Adds a batch."""
        batch_BF = features_BF.double().cpu().numpy()
        if len(batch_BF) == 0:
            return
        mean_F = batch_BF.mean(axis=0)
        centred_BF = batch_BF - mean_F
        gap_F = mean_F - self.mean_F
        total = self.count + len(batch_BF)
        # The scatter about the common mean is that of both parts, plus that of their means. Sums of squares without
        # centring would cancel where a mean is large against its deviation.
        self._scatter_FF += centred_BF.T @ centred_BF
        self._scatter_FF += np.outer(gap_F, gap_F) * (self.count * len(batch_BF) / total)
        self.mean_F = self.mean_F + gap_F * (len(batch_BF) / total)
        self.count = total

    @property
    def covariance_FF(self) -> Floats:
        """Returns the covariance with divisor n - 1; at least two vectors must have been added."""
        assert self.count > 1
        return self._scatter_FF / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Returns |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2).

    The trace of the root is computed from the symmetric C1^1/2 C2 C1^1/2, which has the same eigenvalues as C1 C2.
    Eigenvalues that rounding makes negative count as 0.
    """
    values_F, vectors_FF = np.linalg.eigh(first.covariance_FF)
    root_FF = (vectors_FF * np.sqrt(values_F.clip(min=0))) @ vectors_FF.T
    product_F = np.linalg.eigvalsh(root_FF @ second.covariance_FF @ root_FF)
    of_means = float(((first.mean_F - second.mean_F) ** 2).sum())
    of_spreads = float(np.trace(first.covariance_FF) + np.trace(second.covariance_FF))
    return max(0.0, of_means + of_spreads - 2 * float(np.sqrt(product_F.clip(min=0)).sum()))


class FrechetDistance(SampledMetric):
    """Computes the distance of the images to true ones of the same data; a subclass names the value."""

    recorded_as: ClassVar[str]

    def __init__(self, task: MetricTask) -> None:
        """Begins with no images. Raises `ConfigError` where there are too few true images for a covariance."""
        self._true, self._moments = task.true_images, Moments()
        _require_reference(self._true, self.recorded_as)

    @classmethod
    def own_settings(cls, row: MetricRow, task: MetricTask) -> dict[str, Any]:
        """Returns the checksum of the network and the number of true images."""
        true = task.true_images
        return {**true.settings, "reference_images": true.num_validation(REFERENCE_IMAGES)}

    def add(self, batch: LabelledBatch) -> None:
        """Adds images in [-1, 1]. Raises `RunFailedError` where they are not finite."""
        require_finite_images(batch.images_BCHW)
        self._moments.add(self._true.features_of(batch.images_BCHW))

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the row of the distance; at least two images must have been added."""
        value = frechet_distance(self._moments, reference_moments(self._true))
        update = {"metric": self.recorded_as, "value": value, "num_samples": self._moments.count}
        return [base.model_copy(update=update)]


class FrechetShapes(FrechetDistance):
    """Computes the distance of the images to renders of the same data seed and image size."""

    recorded_as = DISTANCE


class FrechetPictures(FrechetDistance):
    """Computes the distance of the images to the validation split of a prepared set, in features of its network."""

    recorded_as = "frechet-pictures"


def _require_reference(true: TrueImages, metric: str) -> None:
    num_images = true.num_validation(REFERENCE_IMAGES)
    if num_images <= NUM_FEATURES:
        raise ConfigError(
            f"the data set has {num_images} validation images: {metric} needs more than its {NUM_FEATURES} features.",
            f"Prepare it with --validation-images {4 * NUM_FEATURES}.",
        )


def reference_moments(true: TrueImages) -> Moments:
    """Returns the moments of `REFERENCE_IMAGES` images of the validation split, or of all where it has fewer."""

    def make() -> Moments:
        moments = Moments()
        for features_BF in torch.split(true.validation_features(REFERENCE_IMAGES), AT_ONCE):
            moments.add(features_BF)
        return moments

    return true.remembered("moments", make)


def moments_of(batches: Iterable[Tensor], features: Callable[[Tensor], Tensor] = features_of) -> Moments:
    """Returns the moments of the features of images [B, C, H, W]."""
    moments = Moments()
    for images_BCHW in batches:
        moments.add(features(images_BCHW))
    return moments
