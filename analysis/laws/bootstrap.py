"""Bootstrap intervals of a fit: configurations are reweighted, and each resample is refitted from the point fit.

The unit of resampling is a configuration with all its seeds. The misfit of a law at a configuration is common to all of
its seeds, so seeds are not independent observations of the law; intervals that resample single runs are too narrow, the
more so the more seeds there are. Resampling single runs is therefore not offered. Configurations that are lengths of
one trunk share what it deviates, so that they come together, too, and count as one unit (`shared_trunks.py`).

The weights of configurations are drawn from an exponential distribution (the Bayesian bootstrap of Rubin 1981), which
gives about the intervals of drawing configurations with replacement, but leaves no configuration out. This matters
because studies of scaling laws have few configurations, and many draws with replacement no longer identify the law.

Resampling C units to which P parameters were fitted understates variances by (C - P) / C, because the residuals of a
fit are smaller than the errors. Percentiles of few units also know nothing of the uncertainty of their own spread. The
deviations of the resamples from the point fit are therefore widened by sqrt(C / (C - P)) and by sqrt(nu / chi-squared
of nu) with nu = C - P; for a linear law this gives Student's interval. Without it nominal 95% intervals of an exponent
cover in 76 of 100 simulated studies of 5 configurations, and with it in 90
(`tests/unit/analysis/test_laws_bootstrap.py`). Where there are no more units than parameters, there is no interval.

A resample whose search does not converge gives no law. Such resamples are counted and reported, and where they are
more than half, no interval is given.
Shapes: R resamples that gave a law, n runs, P coordinates of the search.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.laws.fit import Fit, FitError, descend
from analysis.laws.forms import Values
from analysis.laws.log_model import LogModel
from analysis.seed_intervals import CONFIDENCE

NUM_RESAMPLES = 1000
MAX_FAILED_SHARE = 0.5


@dataclass(frozen=True)
class BootstrapEstimate:
    """A value of the point fit and its bootstrap percentile interval, whose ends are NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Formats the value and its interval, as in `0.347 (0.321 to 0.379)`."""
        return f"{self.value:.4g} ({self.interval('.4g')})"

    def interval(self, form: str) -> str:
        """Formats the ends of the interval by a format of numbers, as in `0.321 to 0.379`."""
        return "no interval" if math.isnan(self.low) else f"{self.low:{form}} to {self.high:{form}}"


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """The point fit and its resamples: `thetas_RP` are their laws in the coordinates of the search.

    There are no resamples where the fit has no more units than parameters. `failures` maps each reason why a resample
    gave no law to the number of such resamples.
    """

    fit: Fit
    thetas_RP: Values
    failures: Mapping[str, int]

    @property
    def num_failed(self) -> int:
        """Returns the number of resamples that gave no law."""
        return sum(self.failures.values())

    @property
    def unit_name(self) -> str:
        """Returns what the resamples draw, in the plural."""
        of_trunks = num_units(self.fit.observations.unit) < num_units(self.fit.observations.configuration)
        return "trunks of several lengths" if of_trunks else "configurations"

    @property
    def has_intervals(self) -> bool:
        """Says whether there are resamples, and with them intervals."""
        return len(self.thetas_RP) > 0

    @property
    def laws(self) -> list[dict[str, float]]:
        """Returns the parameters of each of the R resamples."""
        model = LogModel(self.fit.form, self.fit.observations.values)
        return [model.unpack(theta_P) for theta_P in self.thetas_RP]

    @property
    def wide_laws(self) -> list[dict[str, float]]:
        """Returns the parameters of the R resamples, widened for few units; intervals follow from them."""
        num, random = num_units(self.fit.observations.unit), np.random.default_rng(0)
        freedom = max(num - len(self.fit.theta_P), 1)
        # Dividing a normal number by the root of chi-squared over its degrees of freedom gives Student's t.
        few_R1 = np.sqrt(freedom / random.chisquare(freedom, (len(self.thetas_RP), 1)))
        wide_RP = self.fit.theta_P + few_R1 * np.sqrt(num / freedom) * (self.thetas_RP - self.fit.theta_P)
        model = LogModel(self.fit.form, self.fit.observations.values)
        return [model.unpack(theta_P) for theta_P in wide_RP]

    @property
    def parameters(self) -> dict[str, BootstrapEstimate]:
        """Returns each parameter of the point fit with its interval."""
        laws = self.wide_laws
        return {name: estimate(value, [law[name] for law in laws]) for name, value in self.fit.parameters.items()}

    def predictions(self, values: Mapping[str, ArrayLike]) -> Values:
        """Returns the loss [R, m] that each resample predicts at the m points of `values`."""
        return self._losses(values, self.laws)

    def predict(self, values: Mapping[str, ArrayLike]) -> list[BootstrapEstimate]:
        """Returns the loss of the law at each of the m points of `values`, with its interval.

        The interval is that of the law (a confidence interval). A new configuration scatters around the law, and
        `predict.py` has the wider prediction interval for it.
        """
        point_m = np.atleast_1d(self.fit.predict(values))
        by_resample_Rm = self._losses(values, self.wide_laws)
        return [estimate(float(point), by_resample_Rm[:, i]) for i, point in enumerate(point_m)]

    def _losses(self, values: Mapping[str, ArrayLike], laws: Sequence[Mapping[str, float]]) -> Values:
        """Returns the loss [R, m] that each of R laws predicts at the m points of `values`."""
        losses = [np.atleast_1d(self.fit.form.loss(values, law)) for law in laws]
        return np.reshape(losses, (len(laws), len(np.atleast_1d(self.fit.predict(values)))))

    def __str__(self) -> str:
        """Says how many resamples there were, and how many of them gave no law for which reason."""
        num, what = len(self.thetas_RP) + self.num_failed, self.unit_name
        if not num:
            units = num_units(self.fit.observations.unit)
            return f"no interval: {units} {what} for {len(self.fit.theta_P)} parameters"
        if not self.failures:
            return f"{num:,} resamples over {what}"
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in self.failures.items())
        return f"{num:,} resamples over {what}, of which {self.num_failed:,} gave no law ({reasons})"


def estimate(value: float, resampled: Sequence[float] | Values) -> BootstrapEstimate:
    """Returns `value` with the percentile interval of `resampled`, or with none where nothing was resampled."""
    if not len(resampled):
        return BootstrapEstimate(value, math.nan, math.nan)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return BootstrapEstimate(value, float(low), float(high))


def bootstrap(fit: Fit, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Bootstrap:
    """Refits the law of `fit` to `num_resamples` reweightings of its runs; deterministic for a given `seed`.

    Nothing is refitted where the runs have no more units than the law has parameters, which leaves no interval. Raises
    `FitError` when more than half of the resamples give no law.
    """
    observations, model = fit.observations, LogModel(fit.form, fit.observations.values)
    log_loss_n = np.log(observations.loss)
    random = np.random.default_rng(seed)
    unit_n, thetas, failures = observations.unit, [], Counter[str]()
    if num_units(unit_n) <= len(fit.theta_P):
        return Bootstrap(fit, np.empty((0, len(fit.theta_P))), {})
    for _ in range(num_resamples):
        found = descend(model, log_loss_n, draw(unit_n, random), fit.theta_P)
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


def draw(unit_n: NDArray[np.intp], random: np.random.Generator) -> Values:
    """Draws the weights [n] of the runs in one resample, which are equal within a unit.

    The mean over units is 1.
    """
    weights = random.exponential(size=num_units(unit_n))
    return np.asarray((weights / weights.mean())[unit_n])


def num_units(unit_n: NDArray[np.intp]) -> int:
    """Returns how many units, or configurations, the runs have whose indices [n] are given."""
    return int(unit_n.max()) + 1
