"""The data set `stripes`: horizontal or vertical stripes in one of three colours, with captions such as "red rows".

This is the example of docs/how-to/add-a-data-set.md. As experiments/data/sources/stripes.py it is a data set of the
suite, once `STRIPES` is a row of `DATA_SETS`.

Legend: B images of a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.config.caption_kinds import TokenCaptions
from experiments.config.data_sets import NO_FILES, DataSet
from experiments.data.counter import Stream, uniforms
from experiments.data.sources.image_source import SourceSplit, TokenSource

Image = tuple[NDArray[np.float32], str]
"""Pixels [C, H, W] and the caption."""
COLORS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
"""RGB in [-1, 1]; the stripes are on black."""
DIRECTIONS = ("rows", "columns")
WIDTHS = (1, 2, 4)
"""Pixels of a stripe, which a caption does not tell."""
STREAMS = {"train": Stream.TRAIN_SCENE, "validation": Stream.VALIDATION_SCENE}
"""Independent streams of random numbers, so that validation images are not those of training."""

STRIPES = DataSet(
    "experiments.data.sources.stripes:Stripes",
    TokenCaptions,
    fixed={"channels": 3, "vocab_size": 2 + len(COLORS) + len(DIRECTIONS), "caption_length": 4, **NO_FILES},
    examples=("red rows", "green columns", "blue rows"),
)
"""The row: where the class is, how captions come, which settings are fixed, and what `ecdit sample` shows."""


class Stripes(TokenSource):
    """Draws stripes. What image i shows follows from (`data.seed`, split, i) alone."""

    words = (*COLORS, *DIRECTIONS)

    def draw(self, images: range, split: SourceSplit) -> tuple[Tensor, list[str]]:
        """Returns pixels in [-1, 1], float32 [B, C, H, W], and the captions."""
        drawn = [self._image(*row) for row in uniforms(self.data.seed, STREAMS[split], images, 4)]
        return torch.from_numpy(np.stack([pixels_CHW for pixels_CHW, _ in drawn])), [caption for _, caption in drawn]

    def _image(self, for_color: float, for_direction: float, for_width: float, for_phase: float) -> Image:
        """Returns one image and its caption, from four uniform numbers."""
        color, direction, width = (
            choices[int(number * len(choices))]
            for choices, number in ((list(COLORS), for_color), (DIRECTIONS, for_direction), (WIDTHS, for_width))
        )
        place = np.arange(self.data.image_size) + int(for_phase * 2 * width)
        painted_HW = np.broadcast_to(place // width % 2 == 0, (self.data.image_size, self.data.image_size))
        if direction == "rows":
            painted_HW = painted_HW.T
        rgb_C11 = np.array(COLORS[color], dtype=np.float32)[:, None, None]
        return np.where(painted_HW, rgb_C11, np.float32(-1)), f"{color} {direction}"
