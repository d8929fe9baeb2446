"""Manages memory for the text features of batches, which is used again when a batch is gone.

A batch of 256 captions of 120 tokens of T5-XXL is 250 MB, nearly all of it padding. Fresh memory of that size costs ten
times as much as the features that are copied into it: the system hands it out page by page, each cleared. A buffer is
taken again once no tensor on it is left, and of its padding only what the last batch had overwritten is cleared.

Legend: B images of a batch, L caption length, T' tokens that a caption has, V width of their features.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
import torch
from torch import Tensor

MAX_KEPT_BUFFERS = 16
"""The most buffers that are kept for batches that wait or are in use; memory beyond is returned to the system."""
FREE_REFERENCES = 2
"""The reference count of a buffer's array that no tensor uses: the buffer and the counting call refer to it."""


class PaddedText:
    """Features of one batch, float16 [B, L, V]; a row is written with `put`, and ends in zeros."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._array_BLV = np.zeros(shape, dtype=np.float16)
        self._filled = [0] * shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, L, V]."""
        return self._array_BLV.shape

    @property
    def is_free(self) -> bool:
        """Says whether no tensor that `tensor` returned, nor a view of one, is alive."""
        return sys.getrefcount(self._array_BLV) == FREE_REFERENCES

    def tensor(self) -> Tensor:
        """Returns the whole batch; the buffer is in use while this tensor or a view of it is alive."""
        return torch.from_numpy(self._array_BLV)

    def put(self, place: int, text_TV: Tensor) -> None:
        """Writes a caption's features to a row with numpy, whose copies were 1.5 times as fast as torch's."""
        length, before = len(text_TV), self._filled[place]
        self._array_BLV[place, :length] = text_TV.numpy()
        self._array_BLV[place, length:before] = 0
        self._filled[place] = length


class TextBuffers:
    """Gives out buffers and is safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: list[PaddedText] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, int, int]) -> tuple[PaddedText, Tensor]:
        """Returns an unused buffer of this shape, and the tensor that keeps it from being given out again."""
        with self._lock:
            for buffer in self._kept:
                if buffer.shape == shape and buffer.is_free:
                    return buffer, buffer.tensor()
            buffer = PaddedText(shape)
            self._kept = [*self._kept, buffer][-MAX_KEPT_BUFFERS:]
            return buffer, buffer.tensor()
