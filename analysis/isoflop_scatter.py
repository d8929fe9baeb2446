"""The scatter of configurations about the parabola of their budget, and the interval of the minimum due to it.

A configuration is one size at one budget. Its distance from the parabola is nearly the same in every seed, so seeds are
no independent measurements of a minimum: 95% intervals over seeds cover the best size in only 30 to 90% of cases. The
interval is therefore computed from the distances of the configurations, means over their seeds, from the parabolas.
These residuals are taken relative to the loss and pooled over the budgets of one arm, because a parabola has three
parameters and four sizes leave it a single degree of freedom. Linear error propagation carries the scatter to the
minimum, and Student's t uses the pooled degrees of freedom. With three sizes at every budget there are none, and
there is no interval. Where the budgets share trunks (`shared_trunks.py`), a size is off by nearly the same at each of
them, so that the residuals are still pooled but those of one budget alone are counted as degrees of freedom.

The interval assumes that profiles are parabolas and that all budgets of one arm have the same relative scatter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.seed_intervals import CONFIDENCE

Floats = NDArray[np.float64]
NUM_PARABOLA_PARAMETERS = 3


class Profile(NamedTuple):
    """The configurations at one budget: the logarithm of each one's parameters, and its mean loss over seeds."""

    log_params: Sequence[float]
    loss: Sequence[float]


class Scatter(NamedTuple):
    """The standard deviation of configurations about parabolas as a share of the loss, and its degrees of freedom."""

    share: float
    degrees_of_freedom: int


def scatter(profiles: Sequence[Profile], share_trunks: bool = False) -> Scatter | None:
    """Returns the scatter about a parabola for each profile; None where no profile has more than three sizes."""
    of_profiles = [len(profile.loss) - NUM_PARABOLA_PARAMETERS for profile in profiles]
    freedom = sum(of_profiles)
    if freedom == 0:
        return None
    squares = 0.0
    for profile in profiles:
        design, parabola = _parabola(profile)
        loss = np.asarray(profile.loss)
        squares += float((((loss - design @ parabola) / loss.mean()) ** 2).sum())
    return Scatter(math.sqrt(squares / freedom), max(of_profiles) if share_trunks else freedom)


def half_width(profile: Profile, found: Scatter) -> float:
    """Returns half of the 95% interval of the logarithm of the parameters at the minimum of the parabola."""
    design, (_, slope, bend) = _parabola(profile)
    covariance = np.linalg.inv(design.T @ design) * (found.share * float(np.mean(profile.loss))) ** 2
    # The minimum lies at -slope / (2 bend), and this is its gradient with respect to the parameters of the parabola.
    gradient = np.array([0.0, -1 / (2 * bend), slope / (2 * bend**2)])
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, found.degrees_of_freedom))
    return quantile * math.sqrt(gradient @ covariance @ gradient)


def _parabola(profile: Profile) -> tuple[Floats, Floats]:
    """Returns the design matrix of a parabola about the mean size, and the parabola of least squares."""
    log_params = np.asarray(profile.log_params)
    design = np.vander(log_params - log_params.mean(), NUM_PARABOLA_PARAMETERS, increasing=True)
    return design, np.linalg.lstsq(design, np.asarray(profile.loss), rcond=None)[0]
