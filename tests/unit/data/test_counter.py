"""Counter-based random numbers: addressable one by one, independent, and of the stated distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from experiments.data.counter import Stream, normals, uniforms


@pytest.mark.parametrize("draw", [uniforms, normals])
@pytest.mark.parametrize("num", [1, 4, 7, 3072, 40_000])
def test_a_range_equals_its_images_one_by_one(draw, num):
    together = draw(3, Stream.TRAIN_NOISE, range(5, 12), num)
    alone = np.concatenate([draw(3, Stream.TRAIN_NOISE, range(i, i + 1), num) for i in range(5, 12)])
    assert together.shape == (7, num)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("draw", [uniforms, normals])
def test_images_streams_and_seeds_share_no_number(draw):
    drawn = [draw(seed, stream, range(50), 64) for seed in (0, 1, 2**70) for stream in (Stream(1), Stream(2))]
    # 24-bit normals may coincide by chance, whole rows may not
    rows = {row.tobytes() for numbers in drawn for row in numbers}
    assert len(rows) == 6 * 50


def test_uniforms_are_uniform_and_open():
    numbers = uniforms(0, Stream.TRAIN_TIME, range(2000), 100).ravel()
    assert 0 < numbers.min() < numbers.max() < 1
    assert kstest(numbers, "uniform").pvalue > 1e-3


def test_normals_are_normal_and_uncorrelated():
    numbers = normals(0, Stream.TRAIN_NOISE, range(100), 3072)
    assert np.isfinite(numbers).all()
    assert kstest(numbers.ravel().astype(np.float64), "norm").pvalue > 1e-3
    correlation = np.corrcoef(numbers) - np.eye(100)
    assert np.abs(correlation).max() < 6 / np.sqrt(3072)
    halves = (numbers[:, :1536] * numbers[:, 1536:]).mean()  # the two numbers of one Box-Muller pair
    assert abs(halves) < 5 / np.sqrt(numbers.size / 2)


def test_the_stream_is_what_it_was():
    """The numbers are part of the data: a change here changes every dataset and breaks every resumed run."""
    expected = [0.6073659924, 0.5037305356, 0.4291562472]
    np.testing.assert_allclose(uniforms(0, Stream.TRAIN_SCENE, range(1), 3)[0], expected, rtol=1e-9)
