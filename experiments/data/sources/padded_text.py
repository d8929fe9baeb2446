"""Manages memory for the text features of batches, which is used again when a batch is gone.

A batch of 256 captions of 120 tokens of T5-XXL is 250 MB, nearly all of it padding. Where every batch takes fresh
memory, a batch costs about twice the processor time: the memory has to be cleared, and the system hands it out page by
page. So a buffer comes back when the last tensor on it is gone, and of its padding only what the last batch had
overwritten is cleared.

Legend: B images of a batch, L caption length, T' tokens that a caption has, V width of their features.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

MAX_KEPT_BUFFERS = 16
"""The most unused buffers that are kept; memory beyond is returned to the system."""


class PaddedText:
    """Features of one batch, float16 [B, L, V]; a row is written with `put`, and ends in zeros."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._array_BLV = np.zeros(shape, dtype=np.float16)
        self._filled = [0] * shape[0]

    def lend(self, unused: deque[PaddedText]) -> Tensor:
        """Returns the whole batch, and adds this buffer to `unused` when no tensor on that memory is left.

        Torch keeps the numpy array that a tensor was made from until its storage is freed, also by autograd. The array
        here is a view that nobody else has, so its end is the end of the storage.
        """
        view_BLV = self._array_BLV.view()
        weakref.finalize(view_BLV, unused.append, self).atexit = False
        return torch.from_numpy(view_BLV)

    def put(self, place: int, text_TV: Tensor) -> None:
        """Writes a caption's features to a row with numpy, whose copies were 1.5 times as fast as torch's."""
        length, before = len(text_TV), self._filled[place]
        self._array_BLV[place, :length] = text_TV.numpy()
        self._array_BLV[place, length:before] = 0
        self._filled[place] = length


class TextBuffers:
    """Gives out buffers. Threads need no lock, because a deque's `append` and `popleft` are atomic."""

    def __init__(self) -> None:
        self.unused: deque[PaddedText] = deque(maxlen=MAX_KEPT_BUFFERS)

    def take(self, shape: tuple[int, int, int]) -> tuple[PaddedText, Tensor]:
        """Returns a buffer of this shape and the tensor on it. Unused buffers of other shapes are let go."""
        while self.unused:
            try:
                buffer = self.unused.popleft()
            except IndexError:  # another thread has taken the last one
                break
            if buffer.shape == shape:
                return buffer, buffer.lend(self.unused)
        buffer = PaddedText(shape)
        return buffer, buffer.lend(self.unused)
