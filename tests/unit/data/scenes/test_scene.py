"""Scenes: reproducible, disjoint by split, held-out looks kept apart, and unambiguous."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from experiments.data.scenes.objects import COLORS, SHAPES
from experiments.data.scenes.scene import (
    EDGE,
    FRAME,
    GAP,
    HELD_OUT,
    KINDS,
    RELATION_MARGIN,
    RELATIONS,
    SPLITS,
    Scene,
    draw_scene,
    draw_scenes,
    relation_between,
    render_scenes,
)

NUM_SCENES = 4000


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {split: draw_scenes(0, range(NUM_SCENES), split) for split in SPLITS}


def test_a_scene_is_a_function_of_seed_index_and_split():
    together = draw_scenes(7, range(20, 60), "train")
    assert [draw_scene(7, index, "train") for index in range(20, 60)] == together
    np.testing.assert_array_equal(render_scenes(together[5:6]), render_scenes(together)[5:6])
    assert draw_scenes(8, range(20, 60), "train") != together


def test_a_scene_scales_with_the_image(scenes):
    for small, large in zip(scenes["train"][:50], draw_scenes(0, range(50), "train", 64), strict=True):
        assert large.kind == small.kind
        for a, b in zip(small.objects, large.objects, strict=True):
            assert (b.color, b.shape) == (a.color, a.shape)
            assert (b.x, b.y, b.radius) == pytest.approx((2 * a.x, 2 * a.y, 2 * a.radius))


def test_splits_share_no_scene(scenes):
    contents = [{(s.background, s.objects) for s in scenes[split]} for split in SPLITS]
    assert all(len(content) == NUM_SCENES for content in contents)
    assert all(a.isdisjoint(b) for a, b in combinations(contents, 2))


def test_held_out_looks_are_an_eighth_with_each_color_and_shape_once():
    assert sorted(color for color, _ in HELD_OUT) == sorted(COLORS)
    assert sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES)
    assert 8 * len(HELD_OUT) == len(COLORS) * len(SHAPES)


def test_training_and_validation_never_show_a_held_out_look(scenes):
    for split in ("train", "validation"):
        looks = {(o.color, o.shape) for scene in scenes[split] for o in scene.objects}
        assert looks == {(color, shape) for color in COLORS for shape in SHAPES} - HELD_OUT
        assert not any(scene.held_out for scene in scenes[split])


def test_the_held_out_split_shows_nothing_else_and_always_names_it(scenes):
    assert {(o.color, o.shape) for scene in scenes["held_out"] for o in scene.objects} == HELD_OUT
    assert all(scene.held_out for scene in scenes["held_out"])
    assert {scene.kind for scene in scenes["held_out"]} == set(KINDS) - {"single_object", "two_object"}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_kinds_counts_and_relations_are_equally_frequent(scenes, split):
    kinds = Counter(scene.kind for scene in scenes[split])
    counts = Counter(len(scene.objects) for scene in scenes[split] if scene.kind == "counting")
    relations = Counter(scene.relation for scene in scenes[split] if scene.kind == "position")
    for counter, names in ((kinds, KINDS), (counts, (2, 3, 4)), (relations, RELATIONS)):
        expected = counter.total() / len(names)
        assert set(counter) == set(names)
        assert all(abs(number - expected) < 5 * np.sqrt(expected) for number in counter.values())


def test_objects_are_inside_and_apart(scenes):
    for scene in (scene for split in SPLITS for scene in scenes[split]):
        for o in scene.objects:
            assert min(o.x, o.y) - o.radius >= EDGE - 1e-9
            assert max(o.x, o.y) + o.radius <= FRAME - EDGE + 1e-9
            assert 4.75 <= o.radius <= 8
        for a, b in combinations(scene.objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius >= GAP - 1e-9


def test_objects_share_no_pixel_and_no_neighbouring_pixel(scenes):
    for scene in scenes["train"][:1000]:
        masks = scene.masks()
        touched = masks.copy()  # grown by one pixel each way, corners included
        for axis in (1, 2):
            touched |= np.roll(touched, 1, axis) | np.roll(touched, -1, axis)
        assert (touched.sum(0) - masks.sum(0))[masks.any(0)].max(initial=0) == 0


def test_objects_go_everywhere_and_the_order_of_the_caption_is_not_the_order_of_places(scenes):
    singles = np.array([(s.objects[0].x, s.objects[0].y) for s in scenes["train"] if len(s.objects) == 1])
    assert singles.mean(0) == pytest.approx([16, 16], abs=0.5)
    assert (singles.min(0) < 7).all()
    assert (singles.max(0) > 25).all()
    firsts = np.array([(s.objects[0].x, s.objects[0].y) for s in scenes["train"] if s.kind == "two_object"])
    assert firsts.mean(0) == pytest.approx([16, 16], abs=1)


def test_relations_hold_by_a_margin(scenes):
    for scene in scenes["train"]:
        assert (scene.relation is not None) == (scene.kind == "position")
        if scene.relation:
            first, second = scene.objects
            across, along = sorted((abs(first.x - second.x), abs(first.y - second.y)))
            assert along - across >= RELATION_MARGIN - 1e-9
            assert along >= first.radius + second.radius + GAP - 1e-9
            assert scene.relation == relation_between(first, second)


def test_left_is_left_and_above_is_above(scenes):
    by_relation = {scene.relation: scene.objects for scene in scenes["train"] if scene.relation}
    assert by_relation["left of"][0].x < by_relation["left of"][1].x
    assert by_relation["right of"][0].x > by_relation["right of"][1].x
    assert by_relation["above"][0].y < by_relation["above"][1].y
    assert by_relation["below"][0].y > by_relation["below"][1].y


def test_what_a_caption_names_tells_the_objects_apart(scenes):
    for scene in scenes["train"]:
        colors, shapes = {o.color for o in scene.objects}, {o.shape for o in scene.objects}
        if scene.kind in ("two_object", "color_attribution"):
            assert len(shapes) == 2
        if scene.kind == "color_attribution":
            assert len(colors) == 2
        if scene.kind == "position":
            assert len({(o.color, o.shape) for o in scene.objects}) == 2
        if scene.kind == "counting":
            assert len(colors) == len(shapes) == 1
            assert 2 <= len(scene.objects) <= 4
        if scene.kind in ("single_object", "colors"):
            assert len(scene.objects) == 1
