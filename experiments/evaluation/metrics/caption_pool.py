"""Chooses the captions among which the own caption of an image has to be the nearest, and counts how often it is.

Captions that are equal for the network, because their stored features or their classes are, count as one: another
image's equal caption is neither a mistake nor a competitor. The own caption stands among 99 others, which are drawn
from the split by a rule that depends on nothing but the own one, so that true images and samples of every run are asked
the same question. Held-out combinations are few, so that their own caption stands among others of both splits. Where a
set has fewer captions in all, as sets with classes do, all of them are compared.

Legend: B images, M captions, K compared captions, D dimensions in which images and captions are compared.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from experiments.config.features_record import Retrieval
from experiments.config.metric_row import CaptionSplit
from experiments.data.order import shuffled
from experiments.data.sources.pixels import Pixels
from experiments.errors import ConfigError
from experiments.evaluation.metrics.two_tower import TwoTower

NUM_COMPARED_CAPTIONS = 100
MAX_ROWS = 8192
"""The most images of a split whose captions are asked for, the first ones."""
AT_ONCE = 256


class CaptionPool:
    """Holds the different captions of one split of a set, and which of them belongs to which image."""

    def __init__(self, source: Pixels, split: CaptionSplit) -> None:
        """Reads the captions. Raises `ConfigError` where there are not two different ones."""
        self.source, self.split = source, split
        self.num_rows = min(MAX_ROWS, source.num_images(split))
        splits: tuple[CaptionSplit, ...] = ("held_out", "validation") if split == "held_out" else ("validation",)
        captions = torch.cat([_captions(source, one, min(MAX_ROWS, source.num_images(one))) for one in splits])
        keys = [_key(caption) for caption in captions]
        places = {key: place for place, key in reversed(list(enumerate(keys)))}  # the first of each
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self.captions = captions[[places[key] for key in numbers]]
        self._own_of_row = [numbers[key] for key in keys[: self.num_rows]]
        if len(numbers) < 2:
            one, several = ("caption", "captions") if source.index.class_names is None else ("class", "classes")
            raise ConfigError(
                f"{source.folder} has one {one} in its {split} split, which no other can be mistaken for.",
                f"Prepare it with {several} that differ, or with more --validation-images.",
            )

    @property
    def num_compared(self) -> int:
        """Returns K, the number of captions among which an image's own must be the nearest."""
        return min(NUM_COMPARED_CAPTIONS, len(self.captions))

    def compared(self, row: int) -> list[int]:
        """Returns the captions that image `row` of the split is compared with, the own one first."""
        own, num_others = self._own_of_row[row], len(self.captions) - 1
        drawn = shuffled(own, np.arange(self.num_compared - 1), num_others)
        return [own, *(number + (number >= own) for number in drawn.tolist())]

    @torch.no_grad()
    def is_right(self, network: TwoTower, features_BF: Tensor, rows: Sequence[int]) -> Tensor:
        """Says for each image, sampled or true, whether the caption of its row is nearer than the others, bool [B]."""
        captions_MD, images_BD = network.of_captions(self.captions), network.of_features(features_BF)
        compared_BK = torch.tensor([self.compared(row) for row in rows])
        cosine_BK = torch.einsum("bd,bkd->bk", images_BD, captions_MD[compared_BK])
        return cosine_BK[:, 0] > cosine_BK[:, 1:].amax(dim=1)

    def of_true_images(self, network: TwoTower, rows: Sequence[int]) -> Retrieval:
        """Returns how often it is for the true images of these rows."""
        parts = [rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)]
        with torch.no_grad():
            right = [
                self.is_right(network, network.features(self.source.stored(self.split, part)), part) for part in parts
            ]
        return Retrieval(num_right=int(torch.cat(right).sum()), num_images=len(rows), num_captions=self.num_compared)


def _captions(source: Pixels, split: CaptionSplit, num_rows: int) -> Tensor:
    """Returns pooled features [B, U] of the captions of the first images of a split, or their classes [B]."""
    rows = range(num_rows)
    if source.index.class_names is not None:
        return torch.tensor(source.labels(split, rows))
    return source.pooled_features(split, rows)


def _key(caption: Tensor) -> Hashable:
    """Returns what is equal for equal captions."""
    return caption.numpy().tobytes()
