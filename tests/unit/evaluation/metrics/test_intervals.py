"""Intervals: known values, the ends, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from experiments.evaluation.metrics.intervals import mean_interval, normal_interval, wilson


@pytest.mark.parametrize(("successes", "total"), [(0, 5), (1, 10), (7, 20), (50, 100), (99, 100), (3, 3)])
def test_wilson_is_scipys(successes, total):
    expected = stats.binomtest(successes, total).proportion_ci(method="wilson")
    assert wilson(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_all_or_nothing_reaches_the_end_and_keeps_a_width():
    assert wilson(0, 10)[0] == 0.0 < wilson(0, 10)[1] < 0.4
    assert wilson(10, 10)[1] == 1.0 > wilson(10, 10)[0] > 0.6
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("shares", "most"), [((0.98, 0.7, 0.5, 0.3, 0.9, 0.1), 0.965), ((1, 0.99, 1, 0.98, 1, 0.95), 1.0)]
)
def test_the_interval_of_a_mean_over_kinds_holds_the_truth_in_95_of_100_draws(shares, most):
    shares, totals = np.array(shares), np.array([40, 20, 30, 25, 50, 40])
    draws = np.random.default_rng(0).binomial(totals, shares, (4000, 6))
    ends = np.array([mean_interval(list(zip(draw.tolist(), totals.tolist(), strict=True))) for draw in draws])
    held = (ends[:, 0] <= shares.mean()) & (shares.mean() <= ends[:, 1])
    assert 0.94 < held.mean() <= most


def test_the_interval_of_a_mean_stays_within_0_and_1_and_has_a_width_when_all_succeed():
    low, high = mean_interval([(10, 10), (10, 10)])
    assert 0.75 < low < 0.97
    assert high == 1.0
    assert mean_interval([(0, 10), (0, 10)])[0] == 0.0


def test_the_interval_of_values_is_two_standard_errors_wide_and_needs_two_values():
    values = [0.2, 0.4, 0.9, 0.5]
    half_width = 1.959964 * np.std(values, ddof=1) / 2
    assert normal_interval(values, 0, 1) == pytest.approx((0.5 - half_width, 0.5 + half_width))
    assert normal_interval([0.0, 1.0], 0, 1) == (0, 1)
    assert normal_interval([0.5], 0, 1) == (None, None)
