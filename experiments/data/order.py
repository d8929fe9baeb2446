"""Computes the order of the images of an epoch place by place, so that the permutation is never stored.

The image at a place of an epoch is found by a Feistel network, which permutes the numbers below the smallest power of 4
that is not below the number of images. It is applied again until its result is the number of an image (cycle walking;
Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). A resumed run, or a run on another number of
processes, computes only the places that it needs, while a stored permutation of 1.2 billion images would take 10 GB on
every process. Philox derives the keys from (seed, epoch).

Legend: N places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from experiments.data.counter import Stream, random_bits

NUM_ROUNDS = 8
"""The rounds of the network; four pass all statistical tests, and eight take little time beside reading an image."""
Integers = NDArray[np.int64]
Bits = NDArray[np.uint64]
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def shuffled(seed: int, positions_N: Integers, num_images: int) -> Integers:
    """Returns the images at `positions_N` of a stream that goes through `num_images` epoch by epoch: int64 [N]."""
    epoch_N, place_N = np.divmod(positions_N, num_images)
    image_N = np.empty_like(place_N)
    for epoch in np.unique(epoch_N):
        here_N = epoch_N == epoch
        image_N[here_N] = _permuted(_keys(seed, int(epoch)), place_N[here_N].astype(np.uint64), num_images)
    return image_N


def _keys(seed: int, epoch: int) -> Bits:
    return random_bits(seed, Stream.EPOCH_ORDER, range(epoch, epoch + 1), NUM_ROUNDS).ravel()


def _permuted(keys: Bits, place_N: Bits, num_images: int) -> Integers:
    """Applies a bijection of 0 .. `num_images` - 1: values that land outside are permuted again (cycle walking)."""
    half_bits = max(1, (int(num_images - 1).bit_length() + 1) // 2)
    result_N = _feistel(keys, place_N, half_bits)
    outside_N = result_N >= num_images
    while outside_N.any():
        result_N[outside_N] = _feistel(keys, result_N[outside_N], half_bits)
        outside_N = result_N >= num_images
    return result_N.astype(np.int64)


def _feistel(keys: Bits, value_N: Bits, half_bits: int) -> Bits:
    """Applies a Feistel network, which is a bijection of the numbers below 4^half_bits."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left_N, right_N = value_N >> shift, value_N & mask
    for key in keys:
        left_N, right_N = right_N, left_N ^ (_mixed(right_N + key) & mask)
    return (left_N << shift) | right_N


def _mixed(value_N: Bits) -> Bits:
    """Applies SplitMix64's finaliser (Steele et al., OOPSLA 2014): every input bit affects every bit of the result."""
    value_N = (value_N ^ (value_N >> np.uint64(30))) * _MIX_1
    value_N = (value_N ^ (value_N >> np.uint64(27))) * _MIX_2
    return value_N ^ (value_N >> np.uint64(31))
