"""Pixels: shapes fit their box, masks agree with colours, edges are exact, and everything can be told apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from experiments.data.scenes.objects import COLORS, SHAPES, Object, cover, object_masks, render
from experiments.data.scenes.scene import GREY_RANGE, draw_scenes, render_scenes


def silhouette(shape: str, x: float, y: float, radius: float, size: int = 24) -> np.ndarray:
    """What one object covers of a whole image, read off a white object on black."""
    image = render([[Object("white", shape, x, y, radius)]], [0.0], size)
    return (image[0, 0] + 1) / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_lose_nothing(shape):
    center = np.arange(24, dtype=np.float32) + 0.5
    for x, y, radius in ((12.0, 12.0, 5.0), (11.3, 12.8, 8.0), (8.2, 15.9, 6.63)):
        u, v = (center[None, :] - x) / radius, (center[:, None] - y) / radius
        everywhere = np.clip(0.5 - radius * SHAPES[shape](u.astype(np.float32), v.astype(np.float32)), 0, 1)
        np.testing.assert_allclose(silhouette(shape, x, y, radius), everywhere, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_reach_their_box_and_stay_inside(shape):
    grid = np.linspace(-1.5, 1.5, 601, dtype=np.float32)
    rows, columns = np.nonzero(SHAPES[shape](grid[None, :], grid[:, None]) < 0)
    assert np.abs(grid[rows]).max() <= 1.001
    assert 0.9 <= np.abs(grid[columns]).max() <= 1.001


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_distances_near_edges(shape):
    """The slope of a signed distance is 1; anti-aliasing stands on it."""
    grid = np.linspace(-1.2, 1.2, 481, dtype=np.float32)
    distance = SHAPES[shape](grid[None, :], grid[:, None])
    slope = np.hypot(*np.gradient(distance, grid[1] - grid[0]))[np.abs(distance) < 0.1]
    assert np.mean(np.abs(slope - 1) < 0.02) > 0.95


def test_coverage_is_area():
    assert silhouette("circle", 12.2, 11.7, 7).sum() == pytest.approx(np.pi * 49, rel=0.01)
    assert silhouette("bar", 12.2, 11.7, 7).sum() == pytest.approx(14 * 0.84 * 7, rel=0.02)


def test_images_add_objects_to_a_plain_background():
    red, blue = Object("red", "square", 8, 8, 5), Object("blue", "circle", 23, 22, 5)
    image = render([[red, blue]], [0.5], 32)[0]
    np.testing.assert_allclose(image[:, 8, 8], [1, -1, -1])
    np.testing.assert_allclose(image[:, 22, 23], [-1, -1, 1])
    np.testing.assert_allclose(image[:, 8, 23], [0, 0, 0])
    assert image.dtype == np.float32


def test_an_image_without_objects_is_background():
    np.testing.assert_allclose(render([[]], [0.4], 32), -0.2)
    assert object_masks([], 32).shape == (0, 32, 32)
    assert cover([], 32).windows == []


@pytest.mark.parametrize("image_size", [32, 64])
def test_masks_agree_with_pixels(image_size):
    scenes = draw_scenes(5, range(300), "train", image_size)
    for scene, image in zip(scenes, render_scenes(scenes), strict=True):
        masks = scene.masks()
        grey = 2 * scene.background - 1
        for thing, mask in zip(scene.objects, masks, strict=True):
            color = 2 * np.array(COLORS[thing.color])[:, None] - 1
            nearer = np.abs(image[:, mask] - color).sum(0) <= np.abs(image[:, mask] - grey).sum(0) + 1e-4
            assert mask.sum() >= 0.8 * thing.radius**2
            assert nearer.all()
        outside = image[:, ~masks.any(0)]
        assert (np.abs(outside - grey) <= 0.5 * (1 + abs(grey)) + 1e-4).all()


def test_colors_are_far_from_each_other_and_from_every_background():
    colors = [np.array(color) for color in COLORS.values()]
    greys = [np.full(3, grey) for grey in np.linspace(*GREY_RANGE, 7)]
    assert min(np.linalg.norm(a - b) for a, b in combinations(colors, 2)) >= 1
    assert min(np.linalg.norm(color - grey) for color in colors for grey in greys) >= 0.6


def test_shapes_differ_at_the_smallest_size():
    """Distances (L2, in pixels of full contrast) from a shape of radius 4.75 to all shapes of any size and shift."""
    shifts = np.linspace(-0.5, 0.5, 5)
    circles = [(12 + a, 12 + b, radius) for radius in np.arange(4.5, 8.01, 0.25) for a in shifts for b in shifts]
    bank = {shape: np.stack([silhouette(shape, *circle) for circle in circles]) for shape in SHAPES}
    for shape in SHAPES:
        seen = silhouette(shape, 12.13, 11.8, 4.75)
        nearest = {other: np.sqrt(((bank[other] - seen) ** 2).sum((1, 2)).min()) for other in SHAPES}
        assert nearest.pop(shape) < 0.7
        assert min(nearest.values()) > 2, nearest
