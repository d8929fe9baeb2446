"""Renders objects of eight shapes and eight colours, which remain distinct at 10 pixels, with anti-aliased edges.

A shape is a function from coordinates to signed distance (negative inside), in units of the object's radius, after
Quilez, "2D distance functions". The coverage of a pixel is 0.5 minus the distance in pixels, clipped to [0, 1], which
anti-aliases edges without supersampling. Only sums, products, square roots and comparisons are used, so every machine
renders the same bits. The shapes were chosen by the smallest distance between their blurred renders, over all shifts
and sizes: diamonds and stars are missing because at 10 pixels they look like crosses and circles. The colours are the
corners of the RGB cube, far from each other and from every grey background. `scene.py` decides which objects a scene
has.

Legend: B images, M objects, H rows, W columns, P rows or columns of a window, C colour channels. x runs right and y
runs down, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Distance = Callable[[Floats32, Floats32], Floats32]

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
    "black": (0, 0, 0),
    "white": (1, 1, 1),
}
"""The RGB values of each colour, in [0, 1]."""

WINDOW_MARGIN = 1.5
"""The pixels beyond the radius that an edge may cover in part: half a pixel, and more at a sharp corner."""


@dataclass(frozen=True)
class Object:
    """Describes one drawn object: its centre and `radius` (half the side of the box around it) are in pixels."""

    color: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Patches:
    """Holds the coverage of each object in a window around it. Outside its window an object covers nothing."""

    cover_MPP: Floats32
    """The share of each pixel that the object covers, in [0, 1]."""
    windows: list[tuple[slice, slice]]
    """The rows and columns of each window in the image."""


def render(objects: Sequence[Sequence[Object]], background: Sequence[float], image_size: int) -> Floats32:
    """Renders `objects` over plain greys in [0, 1] to float32 [B, C, H, W] in [-1, 1].

    The objects of one image must not overlap: their coverages are added.
    """
    grey_B = np.array(background)
    images_BCHW = np.empty((len(objects), 3, image_size, image_size), dtype=np.float32)
    images_BCHW[:] = (2 * grey_B - 1)[:, None, None, None]
    everything = [thing for things in objects for thing in things]
    place_M = np.repeat(np.arange(len(objects)), [len(things) for things in objects])
    rgb_MC = np.array([COLORS[thing.color] for thing in everything]).reshape(-1, 3)
    contrast_MC11 = (2 * (rgb_MC - grey_B[place_M, None])).astype(np.float32)[:, :, None, None]
    patches = cover(everything, image_size)
    painted = zip(place_M, patches.windows, contrast_MC11, patches.cover_MPP, strict=True)
    for place, (rows, columns), contrast_C11, cover_PP in painted:
        images_BCHW[place, :, rows, columns] += contrast_C11 * cover_PP
    return images_BCHW


def object_masks(objects: Sequence[Object], image_size: int) -> NDArray[np.bool_]:
    """Returns the pixels that each object covers at least by half: bool [M, H, W], in the order of `objects`."""
    masks_MHW = np.zeros((len(objects), image_size, image_size), dtype=np.bool_)
    patches = cover(objects, image_size)
    for mask_HW, window, cover_PP in zip(masks_MHW, patches.windows, patches.cover_MPP, strict=True):
        mask_HW[window] = cover_PP >= 0.5
    return masks_MHW


def cover(objects: Sequence[Object], image_size: int) -> Patches:
    """Returns the coverage of each of `objects`, in windows of one size, so that all are computed as one array."""
    circle_M3 = np.array([(thing.x, thing.y, thing.radius) for thing in objects]).reshape(-1, 3)
    center_M2, radius_M1 = circle_M3[:, :2], circle_M3[:, 2:]
    size = min(image_size, math.ceil(2 * (float(radius_M1.max(initial=0)) + WINDOW_MARGIN)) + 1)
    # Windows begin at whole pixels, and those at the border are moved inside the image. The middle of pixel i is at
    # i + 0.5, from which signed distances are computed.
    corner_M2 = np.clip(np.rint(center_M2 - size / 2), 0, image_size - size)
    middle_M2P = corner_M2[:, :, None] + (np.arange(size) + 0.5)
    uv_M2P = ((middle_M2P - center_M2[:, :, None]) / radius_M1[:, :, None]).astype(np.float32)
    distance_MPP = np.empty((len(objects), size, size), dtype=np.float32)
    for shape, distance in SHAPES.items():
        of_shape = [place for place, thing in enumerate(objects) if thing.shape == shape]
        if of_shape:
            distance_MPP[of_shape] = distance(uv_M2P[of_shape, 0, None, :], uv_M2P[of_shape, 1, :, None])
    distance_MPP *= -radius_M1.astype(np.float32)[:, :, None]
    distance_MPP += np.float32(0.5)
    corners = corner_M2.astype(int).tolist()
    windows = [(slice(top, top + size), slice(left, left + size)) for left, top in corners]
    return Patches(np.clip(distance_MPP, 0, 1, out=distance_MPP), windows)


def _length(u: Floats32, v: Floats32) -> Floats32:
    length: Floats32 = np.sqrt(u * u + v * v)
    return length


def _both(first: Floats32, second: Floats32) -> Floats32:
    """Returns the signed distance to the intersection of two shapes."""
    distance: Floats32 = np.maximum(first, second)
    return distance


def _either(first: Floats32, second: Floats32) -> Floats32:
    """Returns the signed distance to the union of two shapes."""
    distance: Floats32 = np.minimum(first, second)
    return distance


def _box(u: Floats32, v: Floats32, half_width: float, half_height: float) -> Floats32:
    return _both(np.abs(u) - np.float32(half_width), np.abs(v) - np.float32(half_height))


def _circle(u: Floats32, v: Floats32) -> Floats32:
    return _length(u, v) - np.float32(1)


def _ring(u: Floats32, v: Floats32) -> Floats32:
    distance: Floats32 = np.abs(_length(u, v) - np.float32(0.79)) - np.float32(0.21)
    return distance


def _square(u: Floats32, v: Floats32) -> Floats32:
    return _box(u, v, 0.95, 0.95)


def _bar(u: Floats32, v: Floats32) -> Floats32:
    return _box(u, v, 1.0, 0.42)


def _cross(u: Floats32, v: Floats32) -> Floats32:
    return _either(_box(u, v, 1.0, 0.28), _box(u, v, 0.28, 1.0))


def _triangle(u: Floats32, v: Floats32) -> Floats32:
    """Returns the signed distance to an upright triangle with apex (0, -0.9) and base from (-1, 0.9) to (1, 0.9)."""
    side = np.hypot(1.0, 1.8)
    flank = np.abs(u) * np.float32(1.8 / side) - (v + np.float32(0.9)) * np.float32(1 / side)
    return _both(flank, v - np.float32(0.9))


def _moon(u: Floats32, v: Floats32) -> Floats32:
    """Returns the signed distance to a disc without a smaller disc to its right."""
    return _both(_length(u, v) - np.float32(1), np.float32(0.75) - _length(u - np.float32(0.55), v))


def _heart(u: Floats32, v: Floats32) -> Floats32:
    """Returns the signed distance to a heart: two discs, and the area between their outer tangents down to the tip."""
    disc_u, disc_v, disc_radius = 0.46, -0.40, 0.54
    normal_u, normal_v = np.cos(np.deg2rad(42.0)), np.sin(np.deg2rad(42.0))
    touch_u, touch_v = disc_u + disc_radius * normal_u, disc_radius * normal_v
    touch = np.hypot(touch_u, touch_v)
    u, v = np.abs(u), v - np.float32(disc_v)
    disc = _length(u - np.float32(disc_u), v) - np.float32(disc_radius)
    tangent = u * np.float32(normal_u) + (v * np.float32(normal_v) - np.float32(disc_u * normal_u + disc_radius))
    above = u * np.float32(touch_v / touch) - v * np.float32(touch_u / touch)
    return _either(disc, _both(tangent, above))


SHAPES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "bar": _bar,
    "heart": _heart,
}
"""The signed distance of each shape at (u, v), the offset from its centre over its radius. All fit the box [-1, 1]."""
