"""The judge of `shapes-geneval`: which objects a picture of the `shapes` data shows, and if a caption is true of it.

It needs no training and no weights. A pixel belongs to the nearest colour, or to the background; touching pixels of one
colour are one thing. A thing gets the shape, radius and place whose render (from `objects.py`, slightly blurred)
differs least from it. A thing that is like no shape has `shape` None: it counts as an object and matches no word.
`judge_check.py` measures how often this agrees with the truth, on renders and on pictures that were drawn without
`objects.py`; `alignment.py` computes scores over many captions.

The rules are GenEval's six kinds (Ghosh et al., arXiv 2310.11513) made strict: a caption of this data names every
object of its scene, so that a picture that shows more than the caption says is wrong, as well as one that shows less.

Legend: B images, C channels, H rows, W columns, R reference colours, S shifts, K templates, P pixels of a window.
Lengths are in pixels; at another image size than 32 the picture is scaled to 32 first. Pictures of fewer than 16 pixels
show too little: there true renders are denied (`MIN_JUDGED_SIZE` in `experiments.config.metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from experiments.data.scenes.captions import Assertion, Term
from experiments.data.scenes.objects import COLORS, SHAPES, Object, cover
from experiments.data.scenes.scene import FRAME, relation_between
from experiments.evaluation.sampling.finite import require_finite_images

SIZE = int(FRAME)
Floats = NDArray[np.float32]
Reason = Literal["right", "missing", "extra", "shape", "colour", "relation"]

SMOOTHING = 0.6
"""The standard deviation of the blur before pixels are classified, so that noise of single pixels makes no thing."""
MIN_AREA = 14
"""The least number of pixels of a thing; the smallest object of the data has 33."""
MAX_MISFIT = 0.2
"""The largest squared difference to the best template, over the template's own square, at which a thing is a shape.

It is twice what 999 of 1,000 true things have under the degradations of `judge_check.py`, so that a shape which a model
draws badly still counts. The price is that some shapeless things get a shape: of random blobs as large as objects,
about half are below the limit when they are ragged, and nine of ten when they are smooth and round
(`tests/unit/evaluation/metrics/test_judge.py` measures both). The score therefore says which of the eight shapes a
thing is most like, and not that it is well drawn; `frechet.py` measures how far images are from the data as a whole.
"""
WINDOW = 24
RADII = np.arange(4.0, 9.01, 0.25)
BLURS = (0.6, 1.2)
SHIFTS = (-1, 0, 1)
SUBPIXELS = (0.0, 0.5)
GREYS = (0.5, 0.6)
"""The limits of a background pixel: of the absolute mean of its channels, and of their range."""


@dataclass(frozen=True)
class Found:
    """One thing in a picture; `shape` is None where it is like none. `MAX_MISFIT` is the limit of `misfit`."""

    color: str
    shape: str | None
    x: float
    y: float
    radius: float
    misfit: float


@dataclass(frozen=True)
class Verdict:
    """The verdict on a picture and a caption: whether it is true, and if not, the first thing that is wrong."""

    correct: bool
    reason: Reason
    found: tuple[Found, ...]


def find_objects(images_BCHW: Tensor) -> list[list[Found]]:
    """Returns the things in each of the images, float32 [B, 3, H, W] in [-1, 1].

    Raises `RunFailedError` where the images are not finite.
    """
    require_finite_images(images_BCHW)
    scale = images_BCHW.shape[-1] / SIZE
    images_BCHW = images_BCHW.float().cpu()
    if scale != 1:
        images_BCHW = F.interpolate(images_BCHW, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    found = [_things(image_CHW) for image_CHW in images_BCHW.numpy()]
    return [[_scaled(thing, scale) for thing in things] for things in found]


def judge(images_BCHW: Tensor, assertions: Sequence[Assertion]) -> list[Verdict]:
    """Returns one verdict for each image, on the assertion at the same index."""
    return [verdict(things, assertion) for things, assertion in zip(find_objects(images_BCHW), assertions, strict=True)]


def verdict(found: Sequence[Found], assertion: Assertion) -> Verdict:
    """Returns yes, or the first of: something missing, something extra, a wrong shape, colour or relation."""
    wanted = [term for term in assertion.terms for _ in range(term.count)]
    return Verdict((reason := _reason(found, wanted, assertion)) == "right", reason, tuple(found))


def _reason(found: Sequence[Found], wanted: Sequence[Term], assertion: Assertion) -> Reason:
    if len(found) != len(wanted):
        return "missing" if len(found) < len(wanted) else "extra"
    orders = [order for order in permutations(found) if all(map(_has_shape, order, wanted))]
    if not orders:
        return "shape"
    orders = [order for order in orders if all(map(_has_color, order, wanted))]
    if not orders:
        return "colour"
    if assertion.relation is None or any(
        relation_between(_as_object(order[0]), _as_object(order[1])) == assertion.relation for order in orders
    ):
        return "right"
    return "relation"


def _has_shape(thing: Found, term: Term) -> bool:
    return thing.shape == term.shape


def _has_color(thing: Found, term: Term) -> bool:
    return term.color is None or thing.color == term.color


def _as_object(thing: Found) -> Object:
    return Object(thing.color, thing.shape or "", thing.x, thing.y, thing.radius)


def _scaled(thing: Found, scale: float) -> Found:
    return Found(thing.color, thing.shape, thing.x * scale, thing.y * scale, thing.radius * scale, thing.misfit)


def _things(image_CHW: Floats) -> list[Found]:
    smooth_CHW = ndimage.gaussian_filter(image_CHW, (0, SMOOTHING, SMOOTHING), mode="nearest")
    grey = _background(smooth_CHW)
    corners = 2 * np.array(list(COLORS.values()), dtype=np.float32) - 1
    references = np.concatenate([corners, np.full((1, 3), grey, dtype=np.float32)])
    distance_RHW = ((smooth_CHW[None] - references[:, :, None, None]) ** 2).sum(axis=1)
    nearest_HW = distance_RHW.argmin(axis=0)
    found = []
    for number, color in enumerate(COLORS):
        labels_HW, _ = ndimage.label(nearest_HW == number, structure=np.ones((3, 3)))
        areas = np.bincount(labels_HW.ravel())[1:]
        for label in (np.flatnonzero(areas >= MIN_AREA) + 1).tolist():
            others_HW = (nearest_HW != len(COLORS)) & (labels_HW != label)
            cover_HW = _coverage(image_CHW, corners[number], grey, labels_HW == label, others_HW)
            found.append(_fit(cover_HW, color))
    return found


def _background(smooth_CHW: Floats) -> float:
    """Returns the grey level between the things."""
    mean_HW = smooth_CHW.mean(axis=0)
    is_grey_HW = (np.ptp(smooth_CHW, axis=0) < GREYS[1]) & (np.abs(mean_HW) < GREYS[0])
    return float(np.median(mean_HW[is_grey_HW])) if is_grey_HW.any() else 0.0


def _coverage(
    image_CHW: Floats, color_C: Floats, grey: float, mine_HW: NDArray[np.bool_], others_HW: NDArray[np.bool_]
) -> Floats:
    """Returns the share [H, W] of each pixel that one thing covers, in [0, 1]; 0 where another thing is nearer."""
    # A pixel of which a share s is covered has the colour grey + s (colour - grey). Its projection on the contrast is
    # s.
    contrast_C = color_C - grey
    cover_HW = np.einsum("c,chw->hw", contrast_C, image_CHW - grey) / (contrast_C @ contrast_C)
    near_HW = ndimage.binary_dilation(mine_HW, np.ones((3, 3)), iterations=2) & ~ndimage.binary_dilation(others_HW)
    clipped_HW: Floats = (np.clip(cover_HW, 0, 1) * (near_HW | mine_HW)).astype(np.float32)
    return clipped_HW


@dataclass(frozen=True)
class _Bank:
    """Templates [K, P P], centred in the window up to a fraction of a pixel, and what each of them shows."""

    templates_KP: Floats
    squares_K: Floats
    shapes: list[str]
    radius_K: Floats
    center_K2: Floats


@cache
def _bank() -> _Bank:
    """Returns templates of every shape at every radius, blur and fraction of a pixel."""
    middle = WINDOW / 2
    rows: list[tuple[Floats, str, float, tuple[float, float]]] = []
    for shape in SHAPES:
        for radius in RADII.tolist():
            plain = _render(shape, middle, middle, radius)
            offset = _centroid(plain)[0] - middle, _centroid(plain)[1] - middle
            for right in SUBPIXELS:
                for down in SUBPIXELS:
                    center = middle - offset[0] + right, middle - offset[1] + down
                    sharp = _render(shape, *center, radius)
                    rows += [(ndimage.gaussian_filter(sharp, blur), shape, radius, center) for blur in BLURS]
    templates = np.stack([row[0].ravel() for row in rows]).astype(np.float32)
    return _Bank(
        templates,
        (templates**2).sum(axis=1),
        [row[1] for row in rows],
        np.array([row[2] for row in rows], dtype=np.float32),
        np.array([row[3] for row in rows], dtype=np.float32),
    )


def _render(shape: str, x: float, y: float, radius: float) -> Floats:
    patches = cover([Object("red", shape, x, y, radius)], WINDOW)
    canvas = np.zeros((WINDOW, WINDOW), dtype=np.float32)
    canvas[patches.windows[0]] = patches.cover_MPP[0]
    return canvas


def _centroid(cover_HW: Floats) -> tuple[float, float]:
    """Returns (x, y); the centre of a pixel is at one half."""
    y, x = ndimage.center_of_mass(cover_HW)
    return float(x) + 0.5, float(y) + 0.5


def _fit(cover_HW: Floats, color: str) -> Found:
    """Returns the thing with the template that differs least, tried at a few shifts of the window."""
    bank = _bank()
    x, y = _centroid(cover_HW)
    padded = np.pad(cover_HW, WINDOW)
    left, top = int(np.floor(x)) + WINDOW // 2, int(np.floor(y)) + WINDOW // 2
    corners = [(left + right, top + down) for right in SHIFTS for down in SHIFTS]
    windows_SP = np.stack([padded[b : b + WINDOW, a : a + WINDOW].ravel() for a, b in corners])
    # The squared difference |w - t|^2 is expanded into |w|^2 + |t|^2 - 2 w t, so that all templates and shifts are one
    # matrix product. What lies outside of the window counts as difference too.
    outside_S = (padded**2).sum() - (windows_SP**2).sum(axis=1)
    squares_SK = (windows_SP**2).sum(axis=1)[:, None] + bank.squares_K - 2 * windows_SP @ bank.templates_KP.T
    misfit_SK = (squares_SK + outside_S[:, None]) / bank.squares_K
    place, number = np.unravel_index(misfit_SK.argmin(), misfit_SK.shape)
    misfit = float(misfit_SK[place, number])
    a, b = corners[place]
    center_x, center_y = bank.center_K2[number].tolist()
    shape = bank.shapes[number] if misfit <= MAX_MISFIT else None
    return Found(color, shape, center_x + a - WINDOW, center_y + b - WINDOW, float(bank.radius_K[number]), misfit)
