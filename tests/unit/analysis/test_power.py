"""Numbers of seeds agree with printed tables, with simulated studies and with the test whose power they state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.power import MOST_SEEDS, POWER, power, seeds_needed, seeds_text, smallest_gap
from analysis.seed_intervals import Interval, difference


def paired(gap: float, spread: float) -> Interval:
    return Interval(gap, gap - 1, gap + 1, 3, "paired", spread=spread)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_pairs_need_the_seeds_that_tables_print(effect: float, seeds: int) -> None:
    """Numbers of pairs for a two-sided test at 5% and 80% power, as in Cohen (1988) and G*Power."""
    assert seeds_needed(paired(effect, 1.0)) == seeds
    assert seeds_needed(paired(-0.001 * effect, 0.001)) == seeds


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_separate_seeds_need_what_tables_print_for_two_groups(effect: float, seeds: int) -> None:
    """The spread of a difference of two runs is sqrt(2) times that of one, with 2 (n - 1) degrees of freedom."""
    gap = Interval(effect, None, None, 3, "Welch", spread=math.sqrt(2), freedom_per_seed=2.0)
    assert seeds_needed(gap) == seeds


def test_a_smaller_significance_needs_more_seeds() -> None:
    gap = paired(1.0, 1.0)
    needed = seeds_needed(gap), seeds_needed(gap, 0.05 / 12)
    assert needed == (10, 18)


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_the_power_is_the_share_of_simulated_studies_whose_interval_excludes_0(num_seeds: int) -> None:
    gap = smallest_gap(1.0, num_seeds)
    assert gap is not None
    assert power(gap, 1.0, num_seeds) == pytest.approx(POWER, abs=1e-6)
    values = np.random.default_rng(0).normal(gap, 1.0, (20_000, num_seeds))
    found = stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(POWER, abs=0.01)


def test_without_a_gap_the_power_is_the_significance() -> None:
    assert power(0.0, 1.0, 5) == pytest.approx(0.05)
    assert power(0.0, 1.0, 5, significance=0.01) == pytest.approx(0.01)


def test_a_gap_as_small_as_the_spread_of_many_seeds_is_capped() -> None:
    assert seeds_needed(paired(0.01, 1.0)) is None
    assert seeds_text(paired(0.01, 1.0)) == f"more than {MOST_SEEDS:,}" == "more than 1,000"
    assert seeds_needed(paired(0.0, 1.0)) is None
    assert seeds_text(paired(0.5, 1.0)) == "34"


def test_one_seed_separates_nothing_and_has_no_number_of_seeds() -> None:
    alone = difference({0: 0.1}, {0: 0.2})
    assert seeds_needed(alone) is None
    assert seeds_text(alone) == "–"
    assert smallest_gap(1.0, 1) is None


def test_seeds_that_agree_exactly_need_two() -> None:
    assert seeds_needed(difference({0: 0.1, 1: 0.1}, {0: 0.2, 1: 0.2})) == 2
    assert smallest_gap(0.0, 2) == 0.0


def test_the_spread_is_that_of_differences_where_seeds_are_shared_and_of_both_arms_elsewhere() -> None:
    ours, theirs = {0: 0.1, 1: 0.13, 2: 0.12}, {0: 0.2, 1: 0.21, 2: 0.25}
    pairs = difference(ours, theirs)
    assert pairs.spread == pytest.approx(np.std([ours[seed] - theirs[seed] for seed in ours], ddof=1))
    assert pairs.freedom_per_seed == 1
    apart = difference(ours, {7: 0.2, 8: 0.21, 9: 0.25})
    variances = [np.var(list(values.values()), ddof=1) for values in (ours, theirs)]
    assert apart.spread == pytest.approx(math.sqrt(sum(variances)))
    welch = stats.ttest_ind(list(ours.values()), [0.2, 0.21, 0.25], equal_var=False)
    assert apart.freedom_per_seed * 2 == pytest.approx(welch.df)
