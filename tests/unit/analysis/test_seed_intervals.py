"""Spreads and intervals agree with scipy, and are not invented."""

from __future__ import annotations

import statistics

import pytest
from scipy import stats

from analysis.seed_intervals import difference, interval_of_mean, standard_deviation

OURS = {0: 0.125, 1: 0.131, 2: 0.127}
THEIRS = {0: 0.133, 1: 0.136, 2: 0.134}


def test_the_spread_is_over_n_minus_1() -> None:
    assert standard_deviation(list(OURS.values())) == pytest.approx(statistics.stdev(OURS.values()), rel=1e-12)


def test_one_value_has_no_spread_and_no_interval() -> None:
    assert standard_deviation([0.1]) is None
    assert (interval_of_mean([0.1]).low, interval_of_mean([0.1]).high) == (None, None)
    alone = difference({0: 0.1}, {0: 0.2})
    assert (alone.low, alone.is_below_zero, alone.is_above_zero) == (None, False, False)


def test_equal_seeds_are_paired() -> None:
    gap = difference(OURS, THEIRS)
    expected = stats.ttest_rel(list(OURS.values()), list(THEIRS.values())).confidence_interval(0.95)
    assert gap.method == "paired"
    assert (gap.low, gap.high) == pytest.approx(tuple(expected), rel=1e-9)
    assert gap.mean == pytest.approx(statistics.mean(OURS.values()) - statistics.mean(THEIRS.values()))


def test_other_seeds_are_compared_after_welch() -> None:
    theirs = {5: 0.133, 6: 0.136, 7: 0.134, 8: 0.137}
    gap = difference(OURS, theirs)
    test = stats.ttest_ind(list(OURS.values()), list(theirs.values()), equal_var=False)
    assert gap.method == "Welch"
    assert (gap.low, gap.high) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)


def test_an_interval_that_holds_zero_is_on_neither_side() -> None:
    gap = difference({0: 0.1, 1: 0.3}, {0: 0.2, 1: 0.2})
    assert not gap.is_below_zero
    assert not gap.is_above_zero
