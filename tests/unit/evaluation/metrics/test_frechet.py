"""The Frechet distance against closed forms, the moments against numpy, the features against what they must notice."""

import numpy as np
import pytest
import torch

from experiments.config.metrics import METRICS
from experiments.config.overrides import load_config
from experiments.data.scenes.features import (
    NUM_FEATURES,
    WEIGHTS,
    features_of,
    weights_digest,
)
from experiments.data.scenes.objects import Object, render
from experiments.data.scenes.scene import draw_scenes, render_scenes
from experiments.evaluation.metrics.frechet import (
    REFERENCE_IMAGES,
    FrechetShapes,
    Moments,
    frechet_distance,
    moments_of,
)
from experiments.evaluation.metrics.judge_check import degrade
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask
from experiments.evaluation.metrics.train_features import train_feature_network
from experiments.evaluation.metrics.true_images import REFERENCE_FIRST, DrawnScenes
from experiments.evaluation.sampling.settings import training_conditions
from experiments.records.record_types import EvalRow

BASE = EvalRow(images_seen=64, metric="", value=0.0, num_samples=1, seed=3, weights="ema", settings={"guidance": 2.0})


def moments(mean, covariance) -> Moments:
    """Exactly these, from 2 F points on the axes."""
    mean, covariance = np.asarray(mean, dtype=float), np.asarray(covariance, dtype=float)
    size = len(mean)
    root = np.linalg.cholesky(covariance) * np.sqrt((2 * size - 1) / 2)
    found = Moments(size)
    found.add(torch.from_numpy(np.concatenate([mean + root.T, mean - root.T])))
    return found


def test_moments_are_those_of_all_vectors_whatever_the_batches():
    vectors = 1e4 + np.random.default_rng(0).normal(size=(57, 5)) * [1, 2, 3, 4, 5]
    found = Moments(5)
    for part in np.split(vectors, [1, 7, 7, 40]):
        found.add(torch.from_numpy(part))
    assert found.count == 57
    np.testing.assert_allclose(found.mean_F, vectors.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance_FF, np.cov(vectors.T), rtol=1e-9)


def test_float32_features_lose_nothing_in_the_moments():
    """A sum of squares in float32 would: the mean is 10,000 deviations away from 0."""
    vectors = torch.from_numpy(1e4 + np.random.default_rng(1).normal(size=(4000, 2))).float()
    found = Moments(2)
    for part in torch.split(vectors, 16):
        found.add(part)
    np.testing.assert_allclose(found.covariance_FF, np.cov(vectors.double().numpy().T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (([0, 0], np.eye(2)), ([0, 0], np.eye(2)), 0.0),
        (([0, 0], np.eye(2)), ([3, 4], np.eye(2)), 25.0),
        (([0, 0], np.diag([4, 9])), ([0, 0], np.diag([1, 16])), 2.0),  # sum of (s1 - s2)^2
        (([1, 0], [[2, 1], [1, 2]]), ([0, 0], [[2, 1], [1, 2]]), 1.0),
        # eigenvectors (1, 1) and (1, -1) shared: eigenvalues 3, 1 against 5, 3
        (([0, 0], [[2, 1], [1, 2]]), ([0, 0], [[4, 1], [1, 4]]), (3**0.5 - 5**0.5) ** 2 + (1 - 3**0.5) ** 2),
    ],
)
def test_the_distance_between_normal_distributions_is_the_closed_form(first, second, expected):
    assert frechet_distance(moments(*first), moments(*second)) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(moments(*second), moments(*first)) == pytest.approx(expected, abs=1e-9)


def test_the_distance_of_rotated_covariances_agrees_with_the_matrix_root():
    from scipy.linalg import sqrtm

    random = np.random.default_rng(2)
    one, two = (np.cov(random.normal(size=(4, 30)) * random.uniform(1, 3, (4, 1))) for _ in range(2))
    expected = np.trace(one + two - 2 * np.real(sqrtm(one @ two)))
    assert frechet_distance(moments(np.zeros(4), one), moments(np.zeros(4), two)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def renders():
    return render_scenes(draw_scenes(0, range(REFERENCE_FIRST - 400, REFERENCE_FIRST), "validation"))


@pytest.fixture(scope="module")
def reference():
    return moments_of(
        DrawnScenes(0, 32).render(range(first, first + 300), "validation")
        for first in range(REFERENCE_FIRST, REFERENCE_FIRST + 1500, 300)
    )


def distance(images, reference) -> float:
    return frechet_distance(moments_of([torch.from_numpy(images.astype(np.float32))]), reference)


def test_the_distance_grows_with_blur_and_with_noise(renders, reference):
    random = np.random.default_rng(0)
    clean = distance(renders, reference)
    blurred = [distance(degrade(renders, blur, 0.0, random), reference) for blur in (0.8, 1.2)]
    noisy = [distance(degrade(renders, 0.0, noise, random), reference) for noise in (0.1, 0.2)]
    assert 1.5 * clean < blurred[0] < blurred[1]
    assert 1.5 * clean < noisy[0] < noisy[1]


def test_missing_colours_missing_shapes_and_few_different_images_are_noticed(renders, reference):
    clean = distance(renders, reference)
    scenes = draw_scenes(0, range(REFERENCE_FIRST - 400, REFERENCE_FIRST), "validation")
    grey = [scene.background for scene in scenes]
    only_circles = [[Object(o.color, "circle", o.x, o.y, o.radius) for o in scene.objects] for scene in scenes]
    only_red = [[Object("red", o.shape, o.x, o.y, o.radius) for o in scene.objects] for scene in scenes]
    for wrong in (render(only_circles, grey, 32), render(only_red, grey, 32), np.tile(renders[:20], (20, 1, 1, 1))):
        assert distance(wrong, reference) > 3 * clean


def test_rows_say_which_network_and_how_many_images(renders):
    config = load_config()
    scenes = draw_scenes(0, range(50), "validation")
    task = MetricTask(config, training_conditions(config, "fp32"), BASE)
    scores, like = FrechetShapes(task), FrechetShapes.recorded_under(METRICS["frechet-shapes"], task)["frechet-shapes"]
    for first, part in zip(range(0, 200, 50), np.split(renders[:200], 4), strict=True):
        scores.add(LabelledBatch("validation", range(first, first + 50), torch.from_numpy(part), scenes))
    (row,) = scores.rows(like)
    assert (row.metric, row.num_samples) == ("frechet-shapes", 200)
    assert row.settings == {"guidance": 2.0, "features": weights_digest(), "reference_images": REFERENCE_IMAGES}
    assert 0 < row.value < 10


def test_images_of_another_size_are_resized():
    assert features_of(torch.zeros(2, 3, 64, 64)).shape == (2, NUM_FEATURES)


def test_the_shipped_weights_are_small_and_training_them_is_deterministic():
    assert WEIGHTS.stat().st_size < 400_000
    one, two = (train_feature_network(num_steps=2).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
