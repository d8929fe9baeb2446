"""Averages whose weighting is a power of progress, and the reconstruction of one from others (EDM2's post-hoc EMA).

At progress t (images seen) such an average weighs the weights of an earlier progress s by p(s) = (g + 1) s^g / t^(g+1),
with an exponent g >= 0. Its *width* is the standard deviation of p relative to t, which falls as g grows. A reader asks
for an average by its width; a width of 0.1 means that the average is spread over about a tenth of training.

Source: Karras et al. 2024, arXiv 2312.02696, section 3 and appendix C.

Legend: N stored averages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDEST = 1 / (2 * math.sqrt(3))
"""The width at the exponent 0: all weights since the start of training count alike."""


class PowerProfile(NamedTuple):
    """The weighting of an average that ends after `images_seen` images and has this `width`."""

    images_seen: float
    width: float


class Reconstruction(NamedTuple):
    """The factors of stored averages, and the distance of their sum's profile from the wanted one, relative to it."""

    factors_N: NDArray[np.float64]
    error: float


def exponent_of(width: float) -> float:
    """Returns the exponent g of a width, which is sqrt(g + 1) / ((g + 2) sqrt(g + 3)), for 0 < width <= `WIDEST`.

    Source: equations 123 and 126, algorithm 2.
    """
    assert 0 < width <= WIDEST, width
    t = width**-2
    # (g + 2)^2 (g + 3) = t (g + 1), multiplied out; the largest root is the exponent.
    roots = np.roots([1, 7, 16 - t, 12 - t])
    return max(0.0, float(roots.real.max()))


def share_of_new(exponent: float, images_seen: int, batch_images: int) -> float:
    """Returns 1 - (1 - batch_images / images_seen)^(exponent + 1): the share that the newest weights take.

    It is the integral of the profile over the images of the batch. The average is therefore the integral over all of
    training, whatever the batch size, and the initial weights have no part in it (equation 127).
    """
    if images_seen <= batch_images:
        return 1.0
    return -math.expm1((exponent + 1) * math.log1p(-batch_images / images_seen))


def reconstruct(stored: Sequence[PowerProfile], wanted: PowerProfile) -> Reconstruction:
    """Returns the factors of the `stored` averages whose sum is closest to the `wanted` one.

    They are the least-squares fit of the profiles (algorithm 3) among factors that add up to 1. EDM2's code divides by
    their sum after the fit; a sum other than 1 would change the scale of the weights, by some per cent where few
    averages are stored.
    """
    if wanted in stored:
        return Reconstruction(np.array([float(profile == wanted) for profile in stored]), 0.0)
    count = len(stored)
    images = np.array([profile.images_seen for profile in (*stored, wanted)]) / wanted.images_seen
    exponents = np.array([exponent_of(profile.width) for profile in (*stored, wanted)])
    products = _products(images, exponents)
    of_stored, with_wanted, of_wanted = products[:count, :count], products[:count, count], products[count, count]
    # A Lagrange multiplier for the sum of 1 takes the last row and column.
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = of_stored, 0
    solution = np.linalg.lstsq(system, np.append(with_wanted, 1.0), rcond=None)[0]
    factors_N: NDArray[np.float64] = solution[:count]
    squared = of_wanted - 2 * factors_N @ with_wanted + factors_N @ of_stored @ factors_N
    return Reconstruction(factors_N, math.sqrt(max(0.0, float(squared / of_wanted))))


def _products(images: NDArray[np.float64], exponents: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the integral of p_i p_j over progress for every pair of profiles (equation 151)."""
    images_i, images_j = images[:, None], images[None, :]
    exponents_i, exponents_j = exponents[:, None], exponents[None, :]
    ratio = (images_i / images_j) ** np.where(images_i < images_j, exponents_j, -exponents_i)
    scale = (exponents_i + exponents_j + 1) * np.maximum(images_i, images_j)
    products: NDArray[np.float64] = (exponents_i + 1) * (exponents_j + 1) * ratio / scale
    return products
