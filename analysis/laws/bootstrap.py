"""Intervals of a fit by resampling runs, with every resample fitted again from the point fit.

Three questions, three ways to draw (`draw`):
- `runs`: any run may come up again or not at all: how much the law depends on which runs were made.
- `configurations`: whole configurations with all their seeds: the same, where the law misses configurations as a whole
  and the seeds of one are no independent witnesses of it. Wider, and the honest one for extrapolation.
- `seeds`: within each configuration its seeds (stratified): how much the law depends on the seeds, the design held.
  With few seeds this is too narrow, by the factor sqrt((s - 1) / s) at s seeds per configuration.

A resample whose design no longer identifies the law, or whose search does not settle, gives no law: it is counted and
said, and above half of them no interval is given.
Shapes: R resamples that gave a law, n runs, P coordinates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.intervals import CONFIDENCE
from analysis.laws.fit import Fit, FitError, descend
from analysis.laws.forms import Values
from analysis.laws.identify import design_problems
from analysis.laws.log_model import LogModel
from analysis.load import MissingDataError

NUM_RESAMPLES = 1000
MAX_FAILED_SHARE = 0.5

Way = Literal["runs", "configurations", "seeds"]


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
    way: Way
    thetas_RP: Values
    failures: Mapping[str, int]

    @property
    def num_failed(self) -> int:
        """Resamples that gave no law."""
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
        """[m] the loss at `values` with its interval: of the law, without the spread of a single run."""
        point_m = np.atleast_1d(self.fit.predict(values))
        by_resample_Rm = self.predictions(values)
        return [estimate(float(point), by_resample_Rm[:, i]) for i, point in enumerate(point_m)]

    def __str__(self) -> str:
        """How many resamples, of what, and how many gave no law for which reason."""
        num = len(self.thetas_RP) + self.num_failed
        if not self.failures:
            return f"{num:,} resamples over {self.way}"
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in self.failures.items())
        return f"{num:,} resamples over {self.way}, of which {self.num_failed:,} gave no law ({reasons})"


def estimate(value: float, resampled: Sequence[float] | Values) -> Estimate:
    """The percentile interval of `resampled` around `value`."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def bootstrap(fit: Fit, way: Way = "runs", num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Bootstrap:
    """`num_resamples` laws, the same for the same `seed`.

    A `MissingDataError` when seeds are asked for and a configuration has one, a `FitError` when more than half of the
    resamples give no law.
    """
    observations, model = fit.observations, LogModel(fit.form, fit.observations.values)
    log_loss_n = np.log(observations.loss)
    random = np.random.default_rng(seed)
    configuration_n = observations.configuration
    _require_spread(configuration_n, way)
    thetas, failures = [], Counter[str]()
    for _ in range(num_resamples):
        weights_n = draw(configuration_n, way, random)
        problems = design_problems(fit.form, observations.take(weights_n > 0)) if way != "seeds" else []
        found = None if problems else descend(model, log_loss_n, weights_n, fit.theta_P)
        if found is not None and found.is_settled:
            thetas.append(found.theta_P)
        else:
            failures[problems[0].kind if problems else "the search did not settle"] += 1
    if failures.total() > MAX_FAILED_SHARE * num_resamples:
        raise FitError(
            f"{failures.total():,} of {num_resamples:,} resamples gave no law ({failures.most_common(1)[0][0]}).",
            "The fit hangs on single runs: add runs.",
        )
    return Bootstrap(fit, way, np.array(thetas), dict(failures))


def draw(configuration_n: NDArray[np.intp], way: Way, random: np.random.Generator) -> Values:
    """[n] how often each run comes up in one resample."""
    num = len(configuration_n)
    if way == "runs":
        return np.bincount(random.integers(0, num, num), minlength=num).astype(float)
    num_configurations = int(configuration_n.max()) + 1
    if way == "configurations":
        drawn = random.integers(0, num_configurations, num_configurations)
        return np.bincount(drawn, minlength=num_configurations)[configuration_n].astype(float)
    weights_n = np.zeros(num)
    for members in (np.flatnonzero(configuration_n == i) for i in range(num_configurations)):
        np.add.at(weights_n, random.choice(members, len(members)), 1.0)
    return weights_n


def _require_spread(configuration_n: NDArray[np.intp], way: Way) -> None:
    num_single = int((np.bincount(configuration_n) == 1).sum())
    if way == "seeds" and num_single:
        raise MissingDataError(
            f"A bootstrap over seeds needs two seeds of every configuration; {num_single} have one.",
            "Resample over runs, or train more seeds.",
        )
