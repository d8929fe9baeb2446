"""Prints the numbers of docs/metrics.md on precision: `python -m tests.measure_references SET`, a set with features."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.config.prepared_set import read_index
from experiments.config.prepared_settings import settings_of
from experiments.config.schema import DataConfig
from experiments.evaluation.metrics.neighbours import (
    KEPT_BALLS,
    MAX_TRAINING_IMAGES,
    REFERENCE_IMAGES,
    ball_radii,
    copied,
    nearest_distances,
    share_inside,
)
from experiments.evaluation.metrics.true_images import PreparedPictures


def precisions(made_NF: Tensor, validation_MF: Tensor, training_MF: Tensor) -> list[float]:
    """Among validation images, among training images, and among these without the largest balls."""
    radius_M = ball_radii(training_MF)
    kept_M = radius_M <= torch.quantile(radius_M, KEPT_BALLS)
    return [
        share_inside(made_NF, validation_MF, ball_radii(validation_MF)),
        share_inside(made_NF, training_MF, radius_M),
        share_inside(made_NF, training_MF[kept_M], radius_M[kept_M]),
    ]


def main(folder: Path) -> None:
    pictures = PreparedPictures(DataConfig(name="pixels", path=str(folder), **settings_of(read_index(folder))))
    validation_MF = pictures.validation_features(REFERENCE_IMAGES)
    training_MF = pictures.spread_training_features(REFERENCE_IMAGES)
    true_BCHW = pictures.validation(range(len(validation_MF)))
    generator = torch.Generator().manual_seed(0)
    images = {
        "validation images": true_BCHW,
        "noise of deviation 0.5": 0.5 * torch.randn(true_BCHW.shape, generator=generator),
        "nearly white frames": 0.98 + 0.02 * torch.rand(true_BCHW.shape, generator=generator),
        "validation images, blurred over 5 pixels": F.avg_pool2d(true_BCHW, 5, 1, 2),
    }
    for name, images_BCHW in images.items():
        found = precisions(pictures.features_of(images_BCHW), validation_MF, training_MF)
        print(f"{name}: {', '.join(f'{share:.2f}' for share in found)}")
    seen_MF = pictures.training_features(MAX_TRAINING_IMAGES)
    num_held_out = pictures.source.num_images("held_out")
    for split, rows in (("train", range(100)), ("held_out", range(num_held_out))):
        if len(rows):
            distance_N = nearest_distances(pictures.features_of(pictures.source.stored(split, rows)), seen_MF)
            num_copied = copied(distance_N, nearest_distances(validation_MF, seen_MF))
            print(f"copied share of {split} images: {num_copied / len(rows):.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
