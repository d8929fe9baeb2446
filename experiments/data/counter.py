"""Counter-based random numbers, so that image i gets the same ones on every process and in every batch.

numpy's Philox (Salmon et al., SC 2011) is keyed by (seed, stream) and its counter is set to the image, so the numbers
of any range of images are one call. Every image takes a fixed number of them, so normals are made by the method of Box
and Muller and not by rejection, which takes a varying number.

Legend: N images, M numbers per image.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

NUMBERS_PER_COUNT = 4
"""The number of 64-bit numbers that Philox makes from one value of its counter."""

NORMALS_AT_ONCE = 1 << 15
"""The number of normals that are computed together; so many stay in the cache, which takes a third less time."""


class Stream(IntEnum):
    """The purpose of a random number. Streams of one seed are independent; the values define the data and are fixed."""

    TRAIN_SCENE = 1
    VALIDATION_SCENE = 2
    HELD_OUT_SCENE = 3
    TRAIN_NOISE = 4
    TRAIN_TIME = 5
    TRAIN_MASK = 6
    TRAIN_DROPOUT = 7
    VALIDATION_NOISE = 8
    VALIDATION_TIME = 9
    TRAIN_LATENT = 10
    VALIDATION_LATENT = 11
    EPOCH_ORDER = 12
    TRAIN_FLIP = 13


def uniforms(seed: int, stream: Stream, images: range, num: int) -> Floats:
    """Returns uniform numbers in the open interval (0, 1) for each of `images`: float64 [N, M] with M = `num`."""
    # 52 bits plus a half are exact in float64, and neither 0 nor 1 can occur, whose quantiles would be infinite.
    bits_NM = random_bits(seed, stream, images, num)
    uniform_NM = (bits_NM >> np.uint64(12)).astype(np.float64)
    uniform_NM += 0.5
    uniform_NM *= 2.0**-52
    return uniform_NM


def normals(seed: int, stream: Stream, images: range, num: int) -> Floats32:
    """Returns standard normal numbers for each of `images`: float32 [N, M] with M = `num`. The tails reach 6.7."""
    normal_NM = np.empty((len(images), num), dtype=np.float32)
    rows = max(1, NORMALS_AT_ONCE // num)
    for first in range(0, len(images), rows):
        some = images[first : first + rows]
        normal_NM[first : first + rows] = _box_muller(random_bits(seed, stream, some, (num + 1) // 2))[:, :num]
    return normal_NM


def _box_muller(bits_NP: NDArray[np.uint64]) -> Floats32:
    """Returns two normal numbers from each 64 bits, [N, 2 P]: sqrt(-2 log u) times cos(2 pi w) and sin(2 pi w)."""
    uniform_N2P = bits_NP.view(np.uint32).reshape(len(bits_NP), 2, -1).astype(np.float32)
    uniform_N2P += np.float32(0.5)
    uniform_N2P *= np.float32(2.0**-32)
    radius_NP, angle_NP = np.log(uniform_N2P[:, 0]), uniform_N2P[:, 1] * np.float32(2 * np.pi)
    radius_NP *= np.float32(-2)
    np.sqrt(radius_NP, out=radius_NP)
    np.multiply(radius_NP, np.cos(angle_NP), out=uniform_N2P[:, 0])
    np.multiply(radius_NP, np.sin(angle_NP), out=uniform_N2P[:, 1])
    return uniform_N2P.reshape(len(bits_NP), -1)


def random_bits(seed: int, stream: Stream, images: range, num: int) -> NDArray[np.uint64]:
    """Returns numbers of 64 random bits, uint64 [N, M] with M = `num`.

    One call draws the numbers of the whole range. Image i takes a fixed number of counts and starts at i times it.
    """
    assert images.start >= 0, f"negative index in {images}"
    assert images.step == 1, f"{images} leaves images out"
    counts = -(-num // NUMBERS_PER_COUNT)
    generator = np.random.Philox(key=_key(seed, stream), counter=images.start * counts)
    bits_NM = generator.random_raw(len(images) * counts * NUMBERS_PER_COUNT).reshape(len(images), -1)
    return np.ascontiguousarray(bits_NM[:, :num])


@lru_cache(maxsize=256)
def _key(seed: int, stream: Stream) -> NDArray[np.uint64]:
    """Returns a stream's key, which is hashed so that neighbouring seeds are unrelated and seeds of any size fit."""
    return np.random.SeedSequence((seed, int(stream))).generate_state(2, np.uint64).astype(np.uint64)
