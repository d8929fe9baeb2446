"""Draws scenes of the `shapes` data, each determined by (seed, split, index): its objects, places and relations.

The six kinds are GenEval's (Ghosh et al., arXiv 2310.11513). A scene is unambiguous by construction. Objects lie in
cells into which the frame is cut, at least `GAP` apart and `EDGE` from the border, so no layout is rejected and drawn
again, and each image takes a fixed number of random numbers. `train` and `validation` are separate streams without any
look (colour and shape) of `HELD_OUT`. In `held_out` every object has such a look, and only the kinds that name colours
occur, because "a circle" asserts nothing that training has not shown. `objects.py` renders scenes, and `captions.py`
describes them.

Legend: N scenes, S = 4 slots of the frame, U random numbers of a scene, A axes (major, minor). Lengths are in units of
1/32 of the image side, so a scene is the same at any image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from experiments.data.counter import Floats, Stream, uniforms
from experiments.data.scenes.objects import COLORS, SHAPES, Floats32, Object, object_masks, render

Kind = Literal["single_object", "two_object", "counting", "colors", "position", "color_attribution"]
Split = Literal["train", "validation", "held_out"]
Relation = Literal["left of", "right of", "above", "below"]
Look = tuple[str, str]
"""The (colour, shape) of an object."""

KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
COUNTS = (2, 3, 4)

HELD_OUT: frozenset[Look] = frozenset(
    {
        ("red", "ring"),
        ("green", "heart"),
        ("blue", "triangle"),
        ("yellow", "moon"),
        ("magenta", "square"),
        ("cyan", "bar"),
        ("black", "circle"),
        ("white", "cross"),
    }
)
"""One eighth of the looks, with each colour and each shape once. Training shows both parts of each, never together."""

FRAME = 32.0
EDGE = 1.0
GAP = 2.5
"""The gap between the boxes of two objects, which keeps them separate under the blur that a sampler leaves."""
RELATION_MARGIN = 3.0
"""The least by which two related objects are farther apart along the axis of their relation than across it."""

RADIUS_RANGE = np.array([(5.0, 8.0), (5.0, 6.5), (4.75, 6.0), (4.75, 5.5)])
"""The smallest and largest radius, by number of objects from 1 to 4."""
GREY_RANGE = (0.35, 0.65)

_STREAMS: dict[Split, Stream] = {
    "train": Stream.TRAIN_SCENE,
    "validation": Stream.VALIDATION_SCENE,
    "held_out": Stream.HELD_OUT_SCENE,
}
_SLOTS: tuple[tuple[int, ...], ...] = ((0,), (0, 2), (0, 1, 2), (0, 1, 2, 3))
"""The slots that objects take, by the number of objects. Slots 0 and 1 lie in the frame's first band, 2 and 3 in the
second."""
_NUM_UNIFORMS = 24


@dataclass(frozen=True)
class Scene:
    """Holds the facts of one image. In scenes of kind `position`, `relation` relates the first object to the second."""

    split: Split
    index: int
    kind: Kind
    objects: tuple[Object, ...]
    relation: Relation | None
    background: float
    image_size: int

    @property
    def held_out(self) -> bool:
        """Says whether the scene shows a look that training never shows."""
        return any((thing.color, thing.shape) in HELD_OUT for thing in self.objects)

    def masks(self) -> NDArray[np.bool_]:
        """Returns the pixels of each object as bool [objects, rows, columns]."""
        return object_masks(self.objects, self.image_size)


def draw_scene(seed: int, index: int, split: Split, image_size: int = 32) -> Scene:
    """Draws scene `index` of `split`, a pure function of its arguments; `image_size` only sets the scale."""
    return draw_scenes(seed, range(index, index + 1), split, image_size)[0]


def draw_scenes(seed: int, indices: range, split: Split, image_size: int = 32) -> list[Scene]:
    """Draws the scenes of a range of indices; they equal those of `draw_scene`, but this is faster."""
    uniform_NU = uniforms(seed, _STREAMS[split], indices, _NUM_UNIFORMS)
    contents = [_draw_content(split, *row) for row in uniform_NU[:, :3].tolist()]
    num_objects_N = np.array([len(looks) for _, looks in contents])
    related_N = np.array([kind == "position" for kind, _ in contents])
    grey_N = GREY_RANGE[0] + uniform_NU[:, 3] * (GREY_RANGE[1] - GREY_RANGE[0])
    low_N1, high_N1 = RADIUS_RANGE[num_objects_N - 1].T[:, :, None]
    radius_NS = low_N1 + uniform_NU[:, 4:8] * (high_N1 - low_N1)
    place_NS2 = _place(num_objects_N, radius_NS, related_N, uniform_NU[:, 8:])
    circle_NS3 = np.concatenate([place_NS2, radius_NS[:, :, None]], axis=2) * (image_size / FRAME)
    scenes = []
    for index, (kind, looks), grey, circles in zip(
        indices, contents, grey_N.tolist(), circle_NS3.tolist(), strict=True
    ):
        slots = _SLOTS[len(looks) - 1]
        things = tuple(Object(*look, *circles[slot]) for look, slot in zip(looks, slots, strict=True))
        relation = relation_between(things[0], things[1]) if kind == "position" else None
        scenes.append(Scene(split, index, kind, things, relation, grey, image_size))
    return scenes


def render_scenes(scenes: Sequence[Scene]) -> Floats32:
    """Renders scenes of one size to float32 [B, C, H, W] in [-1, 1]."""
    return render([scene.objects for scene in scenes], [scene.background for scene in scenes], scenes[0].image_size)


def relation_between(first: Object, second: Object) -> Relation:
    """Returns where `first` is relative to `second`, along the axis on which their centres are farther apart."""
    right, down = first.x - second.x, first.y - second.y
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def kinds_of(split: Split) -> tuple[Kind, ...]:
    """Returns the kinds that a split draws, each equally often."""
    return KINDS if split != "held_out" else ("counting", "colors", "position", "color_attribution")


@lru_cache(maxsize=32)
def looks_of(kind: Kind, split: Split) -> tuple[tuple[Look, ...], ...]:
    """Returns every combination of looks that a scene of `kind` in `split` may have: one look, or an ordered pair.

    The looks of a pair differ so that the caption is true in one way only: in shape where no colour is named, and in
    both colour and shape where a swap must be noticed.
    """
    looks = [(c, s) for c in COLORS for s in SHAPES if ((c, s) in HELD_OUT) == (split == "held_out")]
    if kind in ("single_object", "counting", "colors"):
        return tuple((look,) for look in looks)
    pairs = [(first, second) for first in looks for second in looks if first != second]
    if kind == "two_object":
        pairs = [(first, second) for first, second in pairs if first[1] != second[1]]
    if kind == "color_attribution":
        pairs = [(first, second) for first, second in pairs if first[0] != second[0] and first[1] != second[1]]
    return tuple(pairs)


def _draw_content(split: Split, for_kind: float, for_looks: float, for_count: float) -> tuple[Kind, tuple[Look, ...]]:
    """Returns the kind of a scene and the look of each of its objects, drawn from three uniform numbers."""
    kinds = kinds_of(split)
    kind = kinds[int(for_kind * len(kinds))]
    choices = looks_of(kind, split)
    looks = choices[int(for_looks * len(choices))]
    return kind, looks * COUNTS[int(for_count * len(COUNTS))] if kind == "counting" else looks


def _place(num_objects_N: NDArray[np.int64], radius_NS: Floats, related_N: NDArray[np.bool_], u_NU: Floats) -> Floats:
    """Returns the centres (x, y) of the objects in their slots, [N, S, 2].

    The frame is cut along its major axis into two bands, and a band with two objects along its minor axis into two
    cells. Each object lies anywhere in its cell. The frame is then mirrored and transposed at random, so that both axes
    and all sides are equally likely.
    """
    # All scenes are placed as arrays of S = 4 slots; an unused slot has size 0, and its place is ignored by the caller.
    used_NS = np.array([[slot in slots for slot in range(4)] for slots in _SLOTS])[num_objects_N - 1]
    size_NS = np.where(used_NS, 2 * radius_NS, 0.0)
    low_NSA, high_NSA = np.full((2, len(u_NU), 4, 2), [[[[EDGE]]], [[[FRAME - EDGE]]]])
    bands_N2 = np.maximum(size_NS[:, 0::2], size_NS[:, 1::2])
    high_NSA[:, :2, 0], low_NSA[:, 2:, 0] = _cut(bands_N2[:, 0], bands_N2[:, 1], u_NU[:, 0])[:, :, None]
    for band in (0, 2):
        ends = _cut(size_NS[:, band], size_NS[:, band + 1], u_NU[:, 1 + band // 2])
        high_NSA[:, band, 1], low_NSA[:, band + 1, 1] = ends
    low_NSA += radius_NS[:, :, None]
    high_NSA -= radius_NS[:, :, None]
    place_NSA = low_NSA + u_NU[:, 3:11].reshape(-1, 4, 2) * (high_NSA - low_NSA)
    place_NSA[related_N, 2, 1] = _aside(place_NSA, low_NSA, high_NSA, u_NU[:, 8])[related_N]
    place_NSA[:, :, 0] = np.where(u_NU[:, 11:12] < 0.5, place_NSA[:, :, 0], FRAME - place_NSA[:, :, 0])
    center_NS2: Floats = np.where(u_NU[:, 12, None, None] < 0.5, place_NSA, place_NSA[:, :, ::-1])
    return center_NS2


def _cut(first_N: Floats, second_N: Floats, u_N: Floats) -> Floats:
    """Returns where the frame's first part ends and its second begins, [2, N]; an empty second part takes no room."""
    low_N, high_N = EDGE + first_N, FRAME - EDGE - GAP - second_N
    end_N = np.where(second_N > 0, low_N + u_N * (high_N - low_N), FRAME - EDGE)
    return np.stack([end_N, end_N + GAP])


def _aside(place_NSA: Floats, low_NSA: Floats, high_NSA: Floats, u_N: Floats) -> Floats:
    """Returns the minor coordinate of slot 2 for which its distance from slot 0 is mostly along the major axis."""
    reach_N = place_NSA[:, 2, 0] - place_NSA[:, 0, 0] - RELATION_MARGIN
    low_N = np.maximum(low_NSA[:, 2, 1], place_NSA[:, 0, 1] - reach_N)
    high_N = np.minimum(high_NSA[:, 2, 1], place_NSA[:, 0, 1] + reach_N)
    minor_N: Floats = low_N + u_N * (high_N - low_N)
    return minor_N
