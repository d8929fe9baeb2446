"""Measures `fid`: the Frechet distance to images of the data in features of InceptionV3, whose weights the user has.

FID (Heusel et al. 2017) is the Frechet distance between real and generated images in the 2048 features of InceptionV3,
in torch-fidelity's port of the original network with the original's resizing of small images; sums are in float64.
torchmetrics computes it. `frechet.py` has the distance that needs no weights, `frechet-shapes`.

Legend: B images, C channels (3), H, W height and width, F features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config.metric_row import MetricRow
from experiments.errors import ConfigError
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric, UserFiles
from experiments.evaluation.metrics.user_networks import INSTALL, bytes_of, library, short_hash
from experiments.records.record_types import EvalRow

INCEPTION_HINT = (
    "Download weights-inception-2015-12-05-6726825d.pth, an asset of torch-fidelity's release v0.2.0, and name it with "
    "--inception-weights FILE."
)
NUM_INCEPTION_FEATURES = 2048


@dataclass(frozen=True)
class InceptionBackbone:
    """A network on the CPU that maps uint8 [B, C, H, W] to [B, F] and has F as `num_features`.

    `settings` says in the records which weights it has.
    """

    network: nn.Module
    settings: dict[str, Any] = field(default_factory=dict)


class Fid(SampledMetric):
    """Computes FID against as many images of the validation split as are sampled, or all where a set has fewer."""

    not_compared = frozenset({"inception_weights"})  # the name of the file; the checksum says which weights it holds

    def __init__(self, task: MetricTask) -> None:
        """Reads the true images. Raises `ConfigError` where there are too few of them for a covariance."""
        assert task.run is not None
        backbone: InceptionBackbone = task.resources["fid"]
        self._distance = InceptionDistance(backbone.network, next(task.run.model.parameters()).device)
        true, size = task.true_images, task.conditions.batch_images
        numbers = range(true.num_validation(task.conditions.num_images))
        if len(numbers) < 2:
            raise ConfigError(
                "the data set has 1 validation image: FID needs at least 2.",
                "Prepare it with more --validation-images.",
            )
        for first in range(0, len(numbers), size):
            self._distance.add_real(true.validation(numbers[first : first + size]))

    @classmethod
    def load(cls, files: UserFiles) -> InceptionBackbone:
        """Loads InceptionV3 from a local file.

        Raises `ConfigError`, in one line with the way out, where the option, the file or a library is missing, or the
        file is damaged or a different one.
        """
        network, path = _load_inception(files.inception_weights), files.inception_weights
        assert path is not None
        return InceptionBackbone(network, {"inception_weights": path.name, "inception_sha256": short_hash([path])})

    @classmethod
    def own_settings(cls, row: MetricRow, task: MetricTask) -> dict[str, Any]:
        """Returns the checksum of the network, and the number of true images where there are fewer than samples."""
        own, num_images = super().own_settings(row, task), task.conditions.num_images
        num_true = task.true_images.num_validation(num_images)
        return own if num_true == num_images else {**own, "reference_images": num_true}

    def add(self, batch: LabelledBatch) -> None:
        """Adds generated images in [-1, 1]."""
        self._distance.add(batch.images_BCHW)

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the row of the distance. Raises `ConfigError` when there are too few images for a covariance."""
        update = {"metric": "fid", "value": self._distance.value(), "num_samples": self._distance.num_generated}
        return [base.model_copy(update=update)]


class InceptionDistance:
    """Accumulates real and generated images, float32 [B, C, H, W] in [-1, 1], and computes their distance."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device = device
        self._fid = library("torchmetrics.image.fid").FrechetInceptionDistance(feature=network).to(device)
        self.num_real = self.num_generated = 0

    def add_real(self, images_BCHW: Tensor) -> None:
        """Adds real images."""
        self._fid.update(bytes_of(images_BCHW).to(self._device), real=True)
        self.num_real += len(images_BCHW)

    def add(self, images_BCHW: Tensor) -> None:
        """Adds generated images."""
        self._fid.update(bytes_of(images_BCHW).to(self._device), real=False)
        self.num_generated += len(images_BCHW)

    def value(self) -> float:
        """Returns the distance. Raises `ConfigError` when there are too few images for a covariance."""
        if min(self.num_real, self.num_generated) < 2:
            raise ConfigError("FID needs at least 2 images.", "Ask for more with --images N.")
        return max(0.0, float(self._fid.compute()))  # rounding may make it negative for equal images


class _InceptionFeatures(nn.Module):
    """Unpacks the features of torch-fidelity's network, which returns a tuple of the requested layers."""

    num_features = NUM_INCEPTION_FEATURES

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns features [B, F] of uint8 images of any size."""
        (features_BF,) = self.network(pixels_BCHW)
        assert isinstance(features_BF, Tensor)
        return features_BF


def _load_inception(path: Path | None) -> nn.Module:
    if path is None:
        raise ConfigError("FID needs the weights of InceptionV3.", f"{INCEPTION_HINT} {INSTALL}")
    if not path.is_file():
        raise ConfigError(f"there is no file {path} with the weights of InceptionV3.", INCEPTION_HINT)
    try:  # torch-fidelity loads with weights_only=False, which executes what is pickled, so the file is checked first
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch does not document what it raises for other files
        raise ConfigError(f"{path} is damaged, or not a file of weights.", INCEPTION_HINT) from error
    library("torchmetrics.image.fid")
    network = library("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    try:
        weights = network(
            "inception-v3-compat", [str(NUM_INCEPTION_FEATURES)], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, TypeError) as error:  # other keys or shapes, or no dictionary
        raise ConfigError(f"the weights in {path} are not those of FID's InceptionV3.", INCEPTION_HINT) from error
    return _InceptionFeatures(weights).eval()
