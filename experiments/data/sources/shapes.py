"""The data set `shapes`: procedural scenes of `experiments.data.scenes.scene`; image i of a split is scene i.

Legend: B images of a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from experiments.data.scenes.captions import VOCABULARY, describe, tokenize
from experiments.data.scenes.classes import class_names, class_of
from experiments.data.scenes.scene import draw_scenes, render_scenes
from experiments.data.sources.image_source import SourceSplit, TokenSource


class Shapes(TokenSource):
    """Draws scenes with captions of the grammar in `scenes/captions.py`."""

    words = VOCABULARY[2:]
    class_names = staticmethod(class_names)

    def draw(self, images: range, split: SourceSplit) -> tuple[Tensor, list[str]]:
        """Returns pixels float32 [B, C, H, W] and captions. The splits use separate random streams."""
        scenes = draw_scenes(self.data.seed, images, split, self.data.image_size)
        return torch.from_numpy(render_scenes(scenes)), [describe(scene) for scene in scenes]

    def labels(self, images: range, split: SourceSplit) -> Sequence[int]:
        """Returns the class of each image: its kind with the colour and the shape of its first object."""
        scenes = draw_scenes(self.data.seed, images, split, self.data.image_size)
        return [class_of(scene) for scene in scenes]

    def tokenize(self, caption: str) -> Sequence[int]:
        """Returns the ids of a caption. The error for an unknown word shows the known ones by category."""
        return _remembered_ids(caption, self.data.caption_length)

    def parts(self, num_images: int) -> Mapping[str, Callable[[int], object]]:
        """Returns what a batch consists of: what is where, pixels, and captions."""
        data = self.data
        some = draw_scenes(data.seed, range(num_images), "train", data.image_size)
        return {
            "scenes": lambda first: draw_scenes(data.seed, range(first, first + num_images), "train", data.image_size),
            "render": lambda first: render_scenes(some),
            "captions": lambda first: [tokenize(describe(scene)) for scene in some],
        }


@lru_cache(maxsize=65_536)
def _remembered_ids(caption: str, length: int) -> tuple[int, ...]:
    """Returns the ids of a caption from a cache, because captions repeat."""
    return tuple(tokenize(caption, length))
