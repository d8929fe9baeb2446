"""Intervals of a fit by reweighting configurations, with every resample fitted again from the point fit.

A configuration counts with all its seeds. What a law misses of a configuration it misses in every seed of it: seeds are
no independent witnesses of the law, and intervals that resample runs are too narrow, the more so the more seeds there
are. There is one way to draw, so that no interval can be made the other way.

The weights of configurations are drawn from an exponential distribution (the Bayesian bootstrap of Rubin 1981), which
gives the intervals of drawing configurations with replacement, but leaves none out: studies of laws are designs of
few configurations, of which half of all draws with replacement would no longer identify the law.

A resample whose search does not settle gives no law: it is counted and said, and above half of them no interval is
given.
Shapes: R resamples that gave a law, n runs, P coordinates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.intervals import CONFIDENCE
from analysis.laws.fit import Fit, FitError, descend
from analysis.laws.forms import Values
from analysis.laws.log_model import LogModel

NUM_RESAMPLES = 1000
MAX_FAILED_SHARE = 0.5


@dataclass(frozen=True)
class Estimate:
    """A value of the point fit and its percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As `0.347 (0.321 to 0.379)`."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """`thetas_RP`: the laws of the resamples. `failures`: why there was none, with how often."""

    fit: Fit
    thetas_RP: Values
    failures: Mapping[str, int]

    @property
    def num_failed(self) -> int:
        """The number of resamples that gave no law."""
        return sum(self.failures.values())

    @property
    def laws(self) -> list[dict[str, float]]:
        """[R] the parameters of each resample."""
        model = LogModel(self.fit.form, self.fit.observations.values)
        return [model.unpack(theta_P) for theta_P in self.thetas_RP]

    @property
    def parameters(self) -> dict[str, Estimate]:
        """Each parameter with its interval."""
        laws = self.laws
        return {name: estimate(value, [law[name] for law in laws]) for name, value in self.fit.parameters.items()}

    def predictions(self, values: Mapping[str, ArrayLike]) -> Values:
        """[R, m] the loss by every resample at the m points of `values`."""
        return np.stack([np.atleast_1d(self.fit.form.loss(values, law)) for law in self.laws])

    def predict(self, values: Mapping[str, ArrayLike]) -> list[Estimate]:
        """[m] the loss of the law at `values` with its interval.

        The interval is of the law alone: what a new configuration is off it is in `predict.py`.
        """
        point_m = np.atleast_1d(self.fit.predict(values))
        by_resample_Rm = self.predictions(values)
        return [estimate(float(point), by_resample_Rm[:, i]) for i, point in enumerate(point_m)]

    def __str__(self) -> str:
        """How many resamples there were, and how many gave no law for which reason."""
        num = len(self.thetas_RP) + self.num_failed
        if not self.failures:
            return f"{num:,} resamples over configurations"
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in self.failures.items())
        return f"{num:,} resamples over configurations, of which {self.num_failed:,} gave no law ({reasons})"


def estimate(value: float, resampled: Sequence[float] | Values) -> Estimate:
    """The percentile interval of `resampled` around `value`."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def bootstrap(fit: Fit, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Bootstrap:
    """`num_resamples` laws, the same for the same `seed`.

    A `FitError` when more than half of the resamples give no law.
    """
    observations, model = fit.observations, LogModel(fit.form, fit.observations.values)
    log_loss_n = np.log(observations.loss)
    random = np.random.default_rng(seed)
    configuration_n = observations.configuration
    thetas, failures = [], Counter[str]()
    for _ in range(num_resamples):
        found = descend(model, log_loss_n, draw(configuration_n, random), fit.theta_P)
        if found.is_settled:
            thetas.append(found.theta_P)
        else:
            failures["the search did not settle"] += 1
    if failures.total() > MAX_FAILED_SHARE * num_resamples:
        raise FitError(
            f"{failures.total():,} of {num_resamples:,} resamples gave no law ({failures.most_common(1)[0][0]}).",
            "The fit hangs on single configurations: add some.",
        )
    return Bootstrap(fit, np.array(thetas), dict(failures))


def draw(configuration_n: NDArray[np.intp], random: np.random.Generator) -> Values:
    """[n] the weight of each run in one resample, 1 on average, which is the same for all runs of one configuration."""
    weights = random.exponential(size=int(configuration_n.max()) + 1)
    return np.asarray((weights / weights.mean())[configuration_n])
