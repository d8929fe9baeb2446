"""Means, standard deviations and 95% intervals over seeds.

Runs with one seed share the order of their data, so their losses are correlated. A difference between two arms is
therefore taken seed by seed where both have the same seeds (paired t), and over all runs otherwise (Welch's t). With
one seed there is a mean and no spread, and the interval is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval, which is None for a single value. `p_value` tests that the true mean is 0.

    `spread` is the standard deviation of a single value, or of the difference of two single ones after Welch. With n
    values (an arm) the interval has `freedom_per_seed` (n - 1) degrees of freedom.
    """

    mean: float
    low: float | None
    high: float | None
    num_values: int
    method: Literal["mean", "paired", "Welch"] = "mean"
    p_value: float | None = None
    spread: float | None = None
    freedom_per_seed: float = 1.0

    @property
    def is_below_zero(self) -> bool:
        """Says whether the whole interval is negative."""
        return self.high is not None and self.high < 0

    @property
    def is_above_zero(self) -> bool:
        """Says whether the whole interval is positive."""
        return self.low is not None and self.low > 0


def mean(values: Sequence[float]) -> float | None:
    """Returns the mean, or None when there are no values."""
    return math.fsum(values) / len(values) if values else None


def standard_deviation(values: Sequence[float]) -> float | None:
    """Returns the standard deviation with n - 1, or None for fewer than two values: one seed has no spread, not 0."""
    if len(values) < 2:
        return None
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def interval_of_mean(values: Sequence[float]) -> Interval:
    """Returns Student's interval of the mean of at least one value."""
    centre, spread = math.fsum(values) / len(values), standard_deviation(values)
    if spread is None:
        return Interval(centre, None, None, len(values))
    error, freedom = spread / math.sqrt(len(values)), len(values) - 1
    half = _t_quantile(freedom) * error
    p_value = _p_value(centre, error, freedom)
    return Interval(centre, centre - half, centre + half, len(values), p_value=p_value, spread=spread)


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """Returns the mean of `ours` minus that of `theirs`, paired where both have the same seeds, else Welch's."""
    if set(ours) == set(theirs):
        pairs = interval_of_mean([ours[seed] - theirs[seed] for seed in ours])
        return replace(pairs, method="paired")
    return _welch(list(ours.values()), list(theirs.values()))


def _welch(ours: list[float], theirs: list[float]) -> Interval:
    gap = math.fsum(ours) / len(ours) - math.fsum(theirs) / len(theirs)
    fewest = min(len(ours), len(theirs))
    spreads = standard_deviation(ours), standard_deviation(theirs)
    if spreads[0] is None or spreads[1] is None:
        return Interval(gap, None, None, fewest, "Welch")
    first, second = spreads[0] ** 2 / len(ours), spreads[1] ** 2 / len(theirs)
    if first + second == 0:
        return Interval(gap, gap, gap, fewest, "Welch", _p_value(gap, 0.0, 1.0), spread=0.0)
    # Welch and Satterthwaite's degrees of freedom, for samples whose variances may differ.
    freedom = (first + second) ** 2 / (first**2 / (len(ours) - 1) + second**2 / (len(theirs) - 1))
    error = math.sqrt(first + second)
    half = _t_quantile(freedom) * error
    variances = spreads[0] ** 2, spreads[1] ** 2
    return Interval(
        gap, gap - half, gap + half, fewest, "Welch", _p_value(gap, error, freedom), math.sqrt(sum(variances)),
        sum(variances) ** 2 / sum(variance**2 for variance in variances),
    )  # fmt: skip


@lru_cache(maxsize=1 << 10)  # thousands of intervals have the same few degrees of freedom
def _t_quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _p_value(centre: float, error: float, freedom: float) -> float:
    """Returns the two-sided p-value of a mean `centre` under the hypothesis that the true mean is 0."""
    if error == 0:
        return 0.0 if centre else 1.0
    return float(2 * stats.t.sf(abs(centre) / error, freedom))
