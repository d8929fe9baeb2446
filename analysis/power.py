"""Computes how many seeds separate a gap between two arms, and which gap a number of seeds separates (power).

The power of a test is the chance that it finds a difference that exists. With n seeds an arm, a gap d between two arms
and a standard deviation s of the difference of single runs, the statistic of Student's t test follows the noncentral t
distribution with noncentrality d sqrt(n) / s (Johnson, Kotz and Balakrishnan 1995, chapter 31). Where both arms have
the same seeds, s is the standard deviation of the differences seed by seed, and there are n - 1 degrees of freedom.
Otherwise s^2 is the sum of both variances, and Welch and Satterthwaite's degrees of freedom lie between n - 1 and
2 (n - 1).

A gap and a spread that were measured with few seeds are themselves uncertain. Their numbers of seeds are for planning;
they say nothing more about the runs that were made.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import optimize, stats

from analysis.seed_intervals import CONFIDENCE, Interval

POWER = 0.8
"""The chance of finding a difference for which numbers of seeds are given, the usual choice since Cohen (1988)."""
MOST_SEEDS = 1000
"""The largest number of seeds that is searched for; a gap that needs more is reported as needing more than this."""
LARGEST_SHIFT_OF_WRONG_SIGN = 5.0
"""The noncentrality above which a significant difference of the wrong sign is too rare to count."""
MOST_SPREADS = 1e6
"""The largest gap, in units of the spread, that `smallest_gap` searches for."""


def power(
    gap: float, spread: float, num_seeds: int, freedom_per_seed: float = 1.0, significance: float = 1 - CONFIDENCE
) -> float:
    """Returns the chance that a two-sided t test at `significance` finds `gap` with `num_seeds` (at least 2) an arm.

    `spread` is the standard deviation of the difference of two single runs. The test has `freedom_per_seed` times
    (num_seeds - 1) degrees of freedom: 1 for pairs of seeds, up to 2 for separate ones.
    """
    freedom = freedom_per_seed * (num_seeds - 1)
    limit = float(stats.t.isf(significance / 2, freedom))
    shift = abs(gap) / spread * math.sqrt(num_seeds)
    # A significant difference of the wrong sign has a chance below 1e-8 here, which scipy computes as NaN for some.
    wrong_sign = stats.nct.cdf(-limit, freedom, shift) if shift < LARGEST_SHIFT_OF_WRONG_SIGN else 0.0
    return float(stats.nct.sf(limit, freedom, shift) + wrong_sign)


@lru_cache(maxsize=1 << 16)  # a report asks several times for each gap, and an answer takes milliseconds
def seeds_needed(gap: Interval, significance: float = 1 - CONFIDENCE) -> int | None:
    """Returns the fewest seeds an arm that find a gap of this size and spread with `POWER`.

    Returns None where these are more than `MOST_SEEDS`, and where the gap is 0 or its spread is not known.
    """
    if gap.spread is None or gap.mean == 0:
        return None

    def is_enough(num_seeds: int) -> bool:
        assert gap.spread is not None
        return not gap.spread or power(gap.mean, gap.spread, num_seeds, gap.freedom_per_seed, significance) >= POWER

    if not is_enough(MOST_SEEDS):
        return None
    too_few, enough = 1, MOST_SEEDS  # power grows with the number of seeds, so the search halves the range
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return enough


def smallest_gap(spread: float, num_seeds: int, freedom_per_seed: float = 1.0) -> float | None:
    """Returns the smallest gap that `num_seeds` an arm find with `POWER`, or None for one seed, which finds nothing."""
    if num_seeds < 2:
        return None
    if spread == 0:
        return 0.0

    def lacking(gap: float) -> float:
        return power(gap, 1.0, num_seeds, freedom_per_seed) - POWER

    largest = 1.0
    while lacking(largest) < 0 and largest < MOST_SPREADS:
        largest *= 2
    return spread * float(optimize.brentq(lacking, 0.0, largest, xtol=1e-9))


def seeds_text(gap: Interval, significance: float = 1 - CONFIDENCE) -> str:
    """Writes `seeds_needed` for a table: a number, `more than 1,000`, or a dash where the spread is not known."""
    if gap.spread is None:
        return "–"
    needed = seeds_needed(gap, significance)
    return f"more than {MOST_SEEDS:,}" if needed is None else f"{needed:,}"
