"""Provides the true images of a run's data, and features of a named network in which samples are compared with them.

The drawn scenes have the network that ships (`features.py`), and a prepared set of pixels has the one in its folder
(`two_tower.py`). The metrics ask this contract and do not know which of the two a run was trained on. What is true is
the validation split; memorisation also asks for images that training has shown.

Legend: B, M images, C channels, H, W height and width, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from experiments.config.data_sets import DATA_SETS
from experiments.config.features_record import FeaturesRecord, read_features
from experiments.config.metric_row import CaptionSplit
from experiments.config.schema import DataConfig
from experiments.data.order import shuffled
from experiments.data.scenes.features import features_of, weights_digest
from experiments.data.scenes.scene import Split, draw_scenes, render_scenes
from experiments.data.sources.image_source import open_source
from experiments.data.sources.pixels import Pixels
from experiments.evaluation.metrics.caption_pool import CaptionPool
from experiments.evaluation.metrics.two_tower import TwoTower, load_two_tower

REFERENCE_FIRST = 1 << 21
"""The number of the first reference render in the validation split; it is far above those of sampled captions."""
AT_ONCE = 256
T = TypeVar("T")


class TrueImages(ABC):
    """True images of one data set, in [-1, 1] as float32, and features of a network that belongs to it."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns what rows record of the network, so that values of two networks are never compared."""

    @abstractmethod
    def features_of(self, images_BCHW: Tensor) -> Tensor:
        """Returns features [B, F] of images."""

    @abstractmethod
    def num_validation(self, num_images: int) -> int:
        """Returns how many of `num_images` images of the validation split there are."""

    @abstractmethod
    def validation(self, numbers: range) -> Tensor:
        """Returns images [B, C, H, W] of the validation split."""

    def num_training(self, num_images: int) -> int:
        """Returns how many different images are among the first `num_images` that a run is trained on."""
        return num_images

    @abstractmethod
    def training_features(self, num_images: int) -> Tensor:
        """Returns the features [M, F] of the first images that a run is trained on, also of mirrored ones."""

    def validation_features(self, num_images: int) -> Tensor:
        """Returns the features [M, F] of `num_images` images of the validation split, or of all where it has fewer."""
        numbers = range(self.num_validation(num_images))
        parts = [numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE)]
        return self.remembered(
            f"validation {num_images}", lambda: torch.cat([self.features_of(self.validation(part)) for part in parts])
        )

    def remembered(self, name: str, make: Callable[[], T]) -> T:
        """Returns what `make` answers, which is called once: many metrics are compared with the same images."""
        if name not in self._made:
            self._made[name] = make()
        found: T = self._made[name]
        return found

    @cached_property
    def _made(self) -> dict[str, Any]:
        return {}


class DrawnScenes(TrueImages):
    """Renders of the scenes of one data seed and image size."""

    def __init__(self, data_seed: int, image_size: int) -> None:
        self._seed, self._size = data_seed, image_size

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the checksum of the network that ships."""
        return {"features": weights_digest()}

    def features_of(self, images_BCHW: Tensor) -> Tensor:
        """Returns features [B, F] by the network that ships."""
        return features_of(images_BCHW)

    def num_validation(self, num_images: int) -> int:
        """Returns `num_images`, because scenes are drawn without end."""
        return num_images

    def validation(self, numbers: range) -> Tensor:
        """Returns renders that no caption is sampled of."""
        return self.render(range(REFERENCE_FIRST + numbers.start, REFERENCE_FIRST + numbers.stop), "validation")

    def training_features(self, num_images: int) -> Tensor:
        """Returns the features of the first renders of the training split."""
        parts = [range(first, min(first + AT_ONCE, num_images)) for first in range(0, num_images, AT_ONCE)]
        return self.remembered(
            f"training {num_images}",
            lambda: torch.cat([self.features_of(self.render(part, "train")) for part in parts]),
        )

    def render(self, numbers: range, split: Split) -> Tensor:
        """Returns renders [B, C, H, W] of a split."""
        return torch.from_numpy(render_scenes(draw_scenes(self._seed, numbers, split, self._size)))


class PreparedPictures(TrueImages):
    """Images of a prepared set of pixels, with the network in its folder."""

    def __init__(self, data: DataConfig) -> None:
        self.source = cast(Pixels, open_source(data))

    @cached_property
    def record(self) -> FeaturesRecord:
        """Returns the record of the network. Raises `ConfigError` where it is missing or not of this set."""
        return read_features(self.source.folder, self.source.index.fingerprint)

    @cached_property
    def network(self) -> TwoTower:
        """Returns the network. Raises `ConfigError` as `record` does."""
        _ = self.record  # which compares the weights with their checksum
        return load_two_tower(self.source.folder, self.source.index)

    def pool(self, split: CaptionSplit) -> CaptionPool:
        """Returns the captions of a split."""
        return self.remembered(f"captions {split}", lambda: CaptionPool(self.source, split))

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the checksum of the network of the set."""
        return {"features": self.record.digest}

    @torch.no_grad()
    def features_of(self, images_BCHW: Tensor) -> Tensor:
        """Returns features [B, F] by the network of the set."""
        return self.network.features(images_BCHW)

    def num_validation(self, num_images: int) -> int:
        """Returns `num_images`, or the size of the validation split where it has fewer."""
        return min(num_images, self.source.num_images("validation"))

    def validation(self, numbers: range) -> Tensor:
        """Returns images of the validation split."""
        return self.source.stored("validation", numbers)

    def num_training(self, num_images: int) -> int:
        """Returns `num_images`, or the size of the training split where it has fewer."""
        return min(num_images, self.source.num_images("train"))

    def training_features(self, num_images: int) -> Tensor:
        """Returns the features of the images that a run sees first, and of mirror images where it mirrors them."""
        rows, found = self.source.seen_by(num_images), []
        for part in (rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)):
            images_BCHW = self.source.stored("train", part)
            mirrored_BCHW = images_BCHW[self.source.may_be_mirrored("train", part)].flip(-1)
            found += [self.features_of(images_BCHW), self.features_of(mirrored_BCHW)]
        return torch.cat(found)

    def spread_training_features(self, num_images: int) -> Tensor:
        """Returns the features [M, F] of `num_images` training images, the same for every run, or of all."""
        total = self.source.num_images("train")
        rows = [int(row) for row in shuffled(0, np.arange(min(num_images, total)), total)]
        parts = [rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)]
        return self.remembered(
            f"spread {num_images}",
            lambda: torch.cat([self.features_of(self.source.stored("train", part)) for part in parts]),
        )


def true_images_of(data: DataConfig) -> TrueImages:
    """Returns the true images of a run's data: drawn scenes, or the pictures of a prepared set."""
    return _drawn(data.seed, data.image_size) if DATA_SETS[data.name].has_scenes else PreparedPictures(data)


@lru_cache(maxsize=4)
def _drawn(data_seed: int, image_size: int) -> DrawnScenes:
    return DrawnScenes(data_seed, image_size)
