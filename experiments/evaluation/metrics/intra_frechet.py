"""`intra-frechet-shapes` is the mean of the Frechet distances within each kind of scene. It is not intra-FID.

Intra-FID (Miyato and Koyama, arXiv 1802.05637, section 4.1) is the mean over classes of the Frechet distance between
the generated and the real images of a class: unlike the distance over all images, it sees where images of one class
are made for another. Here the features are those of `features.py`, and the groups are the six kinds of scenes: a
covariance needs more images than there are features (64), and the 384 classes of `shapes` have far fewer. A run that
is conditioned on classes is asked for the classes of the same scenes.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from experiments.config.metric_row import MetricRow
from experiments.config.metrics import FRECHET_FEATURES
from experiments.data.scenes.features import features_of, weights_digest
from experiments.data.scenes.scene import KINDS, draw_scenes, render_scenes
from experiments.errors import ConfigError
from experiments.evaluation.metrics.frechet import REFERENCE_IMAGES, Moments, frechet_distance
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.metrics.true_images import REFERENCE_FIRST
from experiments.evaluation.sampling.finite import require_finite_images
from experiments.records.record_types import EvalRow

INTRA_DISTANCE = "intra-frechet-shapes"


class IntraFrechetShapes(SampledMetric):
    """Computes the distance of the images of each kind of scene to renders of this kind."""

    def __init__(self, task: MetricTask) -> None:
        """Begins with no images. Raises `ConfigError` where a kind has no more images than there are features."""
        kind, fewest = Counter(scene.kind for scene in task.captions("validation").scenes).most_common()[-1]
        num_images = task.conditions.num_images
        if fewest <= FRECHET_FEATURES:
            raise ConfigError(
                f"--images {num_images} has {fewest} of the kind {kind}: {INTRA_DISTANCE} needs more than its "
                f"{FRECHET_FEATURES} features.",
                f"Ask for more: --images {2 * num_images}.",
            )
        self._reference = reference_by_kind(task.config.data.seed, task.config.data.image_size)
        self._moments = {kind: Moments() for kind in KINDS}

    @classmethod
    def own_settings(cls, row: MetricRow, task: MetricTask) -> dict[str, Any]:
        """Returns the checksum of the network and the number of true images."""
        return {"features": weights_digest(), "reference_images": REFERENCE_IMAGES}

    def add(self, batch: LabelledBatch) -> None:
        """Adds images in [-1, 1] with their scenes. Raises `RunFailedError` where they are not finite."""
        require_finite_images(batch.images_BCHW)
        features_BF = features_of(batch.images_BCHW)
        kind_B = np.array([scene.kind for scene in batch.scenes])
        for kind, moments in self._moments.items():
            moments.add(features_BF[torch.from_numpy(kind_B == kind)])

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the row of the mean over kinds, and then that of each kind."""
        values = {kind: frechet_distance(found, self._reference[kind]) for kind, found in self._moments.items()}
        counts = {kind: found.count for kind, found in self._moments.items()}
        whole = base.model_copy(
            update={
                "metric": INTRA_DISTANCE,
                "value": sum(values.values()) / len(values),
                "num_samples": sum(counts.values()),
            }
        )
        parts = [
            whole.model_copy(update={"metric": f"{INTRA_DISTANCE}/{kind}", "value": value, "num_samples": counts[kind]})
            for kind, value in values.items()
        ]
        return [whole, *parts]


@lru_cache(maxsize=4)
def reference_by_kind(data_seed: int, image_size: int) -> dict[str, Moments]:
    """Returns the moments of the renders of `frechet-shapes`, by the kind of their scene."""
    found: dict[str, Moments] = {kind: Moments() for kind in KINDS}
    for first in range(REFERENCE_FIRST, REFERENCE_FIRST + REFERENCE_IMAGES, 256):
        scenes = draw_scenes(data_seed, range(first, first + 256), "validation", image_size)
        features_BF = features_of(torch.from_numpy(render_scenes(scenes)))
        kind_B = np.array([scene.kind for scene in scenes])
        for kind, moments in found.items():
            moments.add(features_BF[torch.from_numpy(kind_B == kind)])
    return found
