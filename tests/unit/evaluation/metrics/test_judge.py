"""The judge of shapes-geneval sees what was drawn, and answers as the facts do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from experiments.config.metrics import MIN_JUDGED_SIZE, UNRELIABLE_BELOW
from experiments.data.scenes.captions import assertion_of, parse
from experiments.data.scenes.objects import COLORS, SHAPES, Object, render
from experiments.data.scenes.scene import RELATIONS, draw_scenes, render_scenes
from experiments.errors import RunFailedError
from experiments.evaluation.metrics.judge import find_objects, judge, verdict
from experiments.evaluation.metrics.judge_check import (
    check_judge,
    degrade,
    is_true_of,
    shuffled_within_kinds,
)

NUM_CHECKED = 160


def picture(*objects: Object, grey: float = 0.5, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(render([objects], [grey], size))


def reason(caption: str, *objects: Object) -> str:
    return judge(picture(*objects), [parse(caption)])[0].reason


RED_CIRCLE = Object("red", "circle", 9.0, 10.0, 6.0)
BLUE_SQUARE = Object("blue", "square", 23.0, 21.0, 6.0)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_look_is_found_where_it_is(color, shape):
    ((found,),) = find_objects(picture(Object(color, shape, 14.3, 17.8, 6.2)))
    assert (found.color, found.shape) == (color, shape)
    assert np.hypot(found.x - 14.3, found.y - 17.8) < 0.6
    assert abs(found.radius - 6.2) <= 0.5


def test_the_smallest_and_the_largest_objects_are_found():
    for shape in SHAPES:
        for radius in (4.75, 8.0):
            ((found,),) = find_objects(picture(Object("cyan", shape, 15.5, 16.2, radius), grey=0.35))
            assert found.shape == shape, (shape, radius)


@pytest.mark.parametrize("size", [16, 64])
def test_images_of_other_sizes_are_scaled(size):
    if size == 16:  # half the pixels show half the detail: only the large
        things = (Object("red", "square", 8.0, 8.0, 4.0),)
    else:
        things = (replace(RED_CIRCLE, x=18, y=20, radius=12), replace(BLUE_SQUARE, x=46, y=42, radius=12))
    (found,) = find_objects(picture(*things, size=size))
    assert sorted((each.color, each.shape) for each in found) == sorted((each.color, each.shape) for each in things)
    assert abs(found[0].x - things[0].x) < size / 32


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a circle and a square", "right"),
        ("a red circle and a blue square", "right"),
        ("a square and a circle", "right"),
        ("a red circle", "extra"),
        ("two red circles", "shape"),
        ("three red circles", "missing"),
        ("a red circle and a blue heart", "shape"),
        ("a blue circle and a red square", "colour"),
        ("a red circle above a blue square", "relation"),
        ("a red circle left of a blue square", "right"),
        ("a blue square right of a red circle", "right"),
    ],
)
def test_the_first_thing_that_is_wrong_is_named(caption, expected):
    assert reason(caption, RED_CIRCLE, BLUE_SQUARE) == expected


def test_every_relation_is_told_from_the_others():
    for relation in RELATIONS:
        dx, dy = {"left of": (-7, 1), "right of": (7, -1), "above": (1, -7), "below": (-1, 7)}[relation]
        things = replace(RED_CIRCLE, x=16 + dx, y=16 + dy, radius=5.0), Object("green", "bar", 16 - dx, 16 - dy, 5.0)
        assert [other for other in RELATIONS if reason(f"a red circle {other} a green bar", *things) == "right"] == [
            relation
        ]


def test_an_order_that_is_right_is_found_among_things_that_look_alike():
    left, right = Object("red", "circle", 8, 16, 5), Object("red", "circle", 24, 16, 5)
    caption = parse("a red circle left of a red circle")
    found = find_objects(picture(right, left))[0]
    assert verdict(found, caption).correct


def test_a_blob_is_an_object_of_no_shape_and_grey_is_nothing():
    blob = picture()
    blob[0, :, 8:24:4, 8:24] = torch.tensor([1.0, -1, -1])[:, None, None]  # a grating
    blob[0, :, 8:24, 8:24:5] = torch.tensor([1.0, -1, -1])[:, None, None]
    (found,) = find_objects(blob)
    assert [(each.color, each.shape) for each in found] == [("red", None)]
    assert find_objects(picture(grey=0.4)) == [[]]
    assert judge(picture(), [parse("a circle")])[0].reason == "missing"


def random_blobs(num: int, smoothness: float) -> torch.Tensor:
    """Blobs of 60 to 200 pixels, as large as the data's objects: the largest part of noise above a level.

    `smoothness` is the standard deviation in pixels of the blur of the noise: 1.5 makes ragged blobs, 4 round ones.
    """
    random = np.random.default_rng(0)
    down, right = np.mgrid[:32, :32] - 15.5
    middle = np.exp(-(right**2 + down**2) / 72)
    images = []
    while len(images) < num:
        field = ndimage.gaussian_filter(random.standard_normal((32, 32)), smoothness)
        labels, num_parts = ndimage.label((field / field.std() + 2) * middle > random.uniform(0.8, 1.6))
        areas = np.bincount(labels.ravel())[1:]
        if num_parts and 60 <= areas.max() <= 200:
            cover = ndimage.gaussian_filter((labels == areas.argmax() + 1).astype(np.float32), 0.6)
            images.append(cover * np.array([1, -1, -1], dtype=np.float32)[:, None, None])
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize(("smoothness", "low", "high"), [(1.5, 0.4, 0.6), (4.0, 0.85, 0.98)])
def test_how_many_blobs_are_named_is_what_the_limit_says(smoothness, low, high):
    """About half of ragged blobs and nine of ten round ones: `MAX_MISFIT` claims no less."""
    found = [thing for things in find_objects(random_blobs(200, smoothness)) for thing in things]
    assert len(found) == 200
    assert low < np.mean([thing.shape is not None for thing in found]) < high


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_image_that_is_not_finite_is_said_to_be_so(value):
    images = torch.cat([picture(RED_CIRCLE), picture(BLUE_SQUARE)])
    images[1, 2, 3, 4] = value
    with pytest.raises(RunFailedError, match=r"^1 of 2 images is not finite.*weights have diverged"):
        judge(images, [parse("a circle"), parse("a square")])


@pytest.mark.parametrize(("size", "rate"), [(8, 0.678), (12, 0.926), (14, 0.989), (16, 0.9995)])
def test_the_rates_by_image_size_are_those_that_the_refusal_states(size, rate):
    scenes = draw_scenes(0, range(400), "validation", size)
    verdicts = judge(torch.from_numpy(render_scenes(scenes)), [assertion_of(scene) for scene in scenes])
    assert np.mean([each.correct for each in verdicts]) == pytest.approx(rate, abs=0.03 if size < 14 else 0.012)
    assert f"{rate:.2%}".replace("0%", "%") in UNRELIABLE_BELOW
    assert (size < MIN_JUDGED_SIZE) == (rate < 0.99)


def test_shuffled_captions_stay_in_their_kind_and_are_all_used():
    assertions = [parse(c) for c in ("a circle", "a heart", "a red bar", "a ring", "a blue moon", "two red bars")]
    shuffled = shuffled_within_kinds(assertions, np.random.default_rng(0))
    assert [each.kind for each in shuffled] == [each.kind for each in assertions]
    assert sorted(map(str, shuffled)) == sorted(map(str, assertions))
    assert all(old != new for old, new in zip(assertions[:5], shuffled[:5], strict=True))


def test_the_judge_agrees_with_the_truth_on_blurred_and_noisy_renders():
    """At least 99.5%, and on shuffled captions it says yes as often as they are true: no more than chance."""
    *checked, independent = check_judge(NUM_CHECKED)
    assert (independent.split, independent.num_images, independent.agreement) == ("independent", 40, 1.0)
    assert {(one.split, one.blur, one.noise) for one in checked} >= {("held_out", 1.2, 0.1), ("validation", 0.0, 0.2)}
    for one in checked:
        assert one.agreement >= 0.987, one  # two of 160; the pool is what decides
        assert one.num_yes_shuffled <= one.num_true_shuffled + 1, one
    assert sum(one.num_right for one in checked) >= 0.995 * NUM_CHECKED * len(checked)
    assert sum(one.num_true_shuffled for one in checked) < 0.2 * NUM_CHECKED * len(checked)


def test_a_judge_would_fail_the_check_on_pictures_it_cannot_read():
    scenes = draw_scenes(0, range(40), "validation")
    ruined = degrade(render_scenes(scenes), 4.0, 0.6, np.random.default_rng(0))
    found = find_objects(torch.from_numpy(ruined))
    right = [verdict(things, assertion_of(scene)).correct for things, scene in zip(found, scenes, strict=True)]
    assert np.mean(right) < 0.5
    assert all(is_true_of(scene, assertion_of(scene)) for scene in scenes)
