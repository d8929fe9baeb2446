"""95% intervals of a proportion, of the mean of the proportions of several groups, and of the mean of any values.

A proportion gets Wilson's score interval, which stays inside [0, 1] and has a positive width where everything or
nothing succeeded (E. B. Wilson, JASA 1927). A mean over groups has one term for each kind of question. The groups are
fixed and only the images in them are drawn, so that its variance comes from the proportions, and not from the
differences between groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev

Z_95 = 1.959963984540054  # the normal distribution has 95% of its mass within this many standard deviations


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Returns the ends, in [0, 1], of the interval of `successes / total`; (0, 1) when nothing was counted."""
    assert 0 <= successes <= total
    if total == 0:
        return 0.0, 1.0
    share, shrink = successes / total, 1 + Z_95**2 / total
    centre = (share + Z_95**2 / (2 * total)) / shrink
    half_width = Z_95 / shrink * sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2))
    return (
        0.0 if successes == 0 else max(0.0, centre - half_width),  # rounding must not move these ends from 0 and 1
        1.0 if successes == total else min(1.0, centre + half_width),
    )


def mean_interval(groups: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Returns the ends, in [0, 1], of the normal interval of the mean of the proportions of `groups`.

    `groups` are (successes, total), at least one and none empty. The variance of a group is taken at Wilson's centre
    and not at its proportion, because a group in which all (or none) succeeded is not known exactly. Where most groups
    are near 0 or 1 the interval is rather too wide.
    """
    assert groups
    assert all(0 <= successes <= total and total > 0 for successes, total in groups)
    mean = sum(successes / total for successes, total in groups) / len(groups)
    variance = sum(_variance(successes, total) for successes, total in groups) / len(groups) ** 2
    half_width = Z_95 * sqrt(variance)
    return max(0.0, mean - half_width), min(1.0, mean + half_width)


def normal_interval(values: Sequence[float], least: float, most: float) -> tuple[float | None, float | None]:
    """Returns the ends of the normal interval of the mean of independent `values`, clipped to [least, most].

    Returns (None, None) for fewer than two values, which do not show their spread.
    """
    if len(values) < 2:
        return None, None
    mean, half_width = fmean(values), Z_95 * stdev(values) / sqrt(len(values))
    return max(least, mean - half_width), min(most, mean + half_width)


def _variance(successes: int, total: int) -> float:
    """Returns the variance of a group's proportion, taken at Wilson's centre.

    That is the proportion with z^2 / 2 successes and as many failures added.
    """
    share = (successes + Z_95**2 / 2) / (total + Z_95**2)
    return share * (1 - share) / total
