"""`frechet-shapes` is the Frechet distance between generated images and renders of the data. It is not FID.

It is the Frechet distance between two normal distributions (Dowson and Landau 1982; for images Heusel et al., arXiv
1706.08500) with the means and covariances of the features of `features.py`.

Only values of the same number of images and of the same `data.image_size` may be compared. For few images the distance
is biased upwards. Images of another size are scaled to the network's 32 pixels, which changes the features of true
renders, too, and so the reference. Figures refuse values of different conditions. With no more images than features
(64) the covariance is singular and the value says little; tables and figures say so.

Legend: B images, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.data.scenes.features import NUM_FEATURES, features_of, weights_digest
from experiments.data.scenes.scene import Split, draw_scenes, render_scenes
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.sampling.finite import require_finite_images
from experiments.records.record_types import EvalRow

DISTANCE = "frechet-shapes"
REFERENCE_IMAGES = 8192
REFERENCE_FIRST = 1 << 21
"""The number of the first reference render in the validation split; it is far above those of sampled captions."""

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


class FrechetShapes(SampledMetric):
    """Computes the distance of the images to renders of the same data seed and image size."""

    def __init__(self, task: MetricTask) -> None:
        self._reference = reference_moments(task.config.data.seed, task.config.data.image_size)
        self._moments = Moments()

    def add(self, batch: LabelledBatch) -> None:
        """Adds images in [-1, 1]. Raises `RunFailedError` where they are not finite."""
        require_finite_images(batch.images_BCHW)
        self._moments.add(features_of(batch.images_BCHW))

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the row of the distance; at least two images must have been added."""
        settings = base.settings | {"features": weights_digest(), "reference_images": REFERENCE_IMAGES}
        value = frechet_distance(self._moments, self._reference)
        update = {"metric": DISTANCE, "value": value, "num_samples": self._moments.count, "settings": settings}
        return [base.model_copy(update=update)]


@lru_cache(maxsize=4)
def reference_moments(data_seed: int, image_size: int) -> Moments:
    """Returns the moments of `REFERENCE_IMAGES` renders of the validation split."""
    return moments_of(
        render_batch(data_seed, image_size, range(first, min(first + 256, REFERENCE_FIRST + REFERENCE_IMAGES)))
        for first in range(REFERENCE_FIRST, REFERENCE_FIRST + REFERENCE_IMAGES, 256)
    )


def moments_of(batches: Iterable[Tensor], features: Callable[[Tensor], Tensor] = features_of) -> Moments:
    """Returns the moments of the features of images [B, C, H, W]."""
    moments = Moments()
    for images_BCHW in batches:
        moments.add(features(images_BCHW))
    return moments


def render_batch(data_seed: int, image_size: int, numbers: range, split: Split = "validation") -> Tensor:
    """Returns renders [B, C, H, W] of a split."""
    return torch.from_numpy(render_scenes(draw_scenes(data_seed, numbers, split, image_size)))
