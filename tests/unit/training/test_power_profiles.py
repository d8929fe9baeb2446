"""Profiles that are powers of progress: their widths, their shares in a step, and the fit of one by others."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.training.power_profiles import WIDEST, PowerProfile, exponent_of, reconstruct, share_of_new

WIDTHS = [0.003, 0.05, 0.10, 0.2, WIDEST]
GRID = (np.arange(200_000) + 0.5) / 200_000
"""The middles of equal parts of training."""


def density(profile: PowerProfile, end: float) -> NDArray[np.float64]:
    """The profile over `GRID`, with training scaled to 1."""
    exponent, until = exponent_of(profile.width), profile.images_seen / end
    return np.where(until >= GRID, (exponent + 1) * (GRID / until) ** exponent / until, 0.0)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_width_is_the_standard_deviation_of_the_profile(width: float) -> None:
    weights = density(PowerProfile(1, width), 1) / len(GRID)
    mean = (weights * GRID).sum()
    assert weights.sum() == pytest.approx(1, abs=1e-4)
    assert math.sqrt((weights * (GRID - mean) ** 2).sum()) == pytest.approx(width, rel=1e-3)


def test_the_exponents_are_those_that_the_paper_prints() -> None:
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert exponent_of(WIDEST) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("batches", [[8] * 16, [128], [64, 16, 48], [1] * 128])
def test_what_is_left_of_old_weights_does_not_depend_on_the_batch_size(batches: list[int]) -> None:
    """128 images after the first 40."""
    seen, left = 40, 1.0
    for batch in batches:
        seen += batch
        left *= 1 - share_of_new(6.94, seen, batch)
    assert left == pytest.approx((40 / 168) ** 7.94, rel=1e-12)
    assert share_of_new(6.94, 8, 8) == 1.0


def test_a_stored_average_is_itself() -> None:
    stored = [PowerProfile(images, width) for images in (40, 80, 160) for width in (0.05, 0.1)]
    factors, error = reconstruct(stored, PowerProfile(160, 0.1))
    assert factors.tolist() == [0, 0, 0, 0, 0, 1]
    assert error == 0


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.25])
def test_the_error_is_the_distance_of_the_profiles_and_falls_with_more_averages(width: float) -> None:
    errors = []
    for count in (2, 4, 8, 16):
        stored = [PowerProfile(100 * (n + 1), each) for n in range(count) for each in (0.05, 0.1)]
        wanted = PowerProfile(100 * count, width)
        factors, error = reconstruct(stored, wanted)
        assert factors.sum() == pytest.approx(1, abs=1e-9)
        target = density(wanted, 100 * count)
        fitted = sum(factor * density(each, 100 * count) for factor, each in zip(factors, stored, strict=True))
        assert error == pytest.approx(np.linalg.norm(fitted - target) / np.linalg.norm(target), rel=0.02)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1
