"""The headline of a law: how far off it is on the largest runs when it has not seen them.

The runs of the largest compute tier are left out, the law is fitted to the others and predicts them. The relative error
is predicted / measured - 1, where the seeds of one configuration are first averaged. The interval resamples the runs
that were fitted and, within each configuration, the seeds that were predicted. A small residual is easy with five
parameters; this error is what a law is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws.bootstrap import NUM_RESAMPLES, Bootstrap, Estimate, Way, bootstrap, draw, estimate
from analysis.laws.fit import Fit
from analysis.laws.forms import Form, Values
from analysis.laws.identify import identified_fit
from analysis.laws.observations import Observations
from analysis.load import MissingDataError
from analysis.tables import significant

COMPUTE = "C"
TIER_FACTOR = 1.1
"""Runs within this factor of the largest compute are one tier: budgets are met approximately."""


@dataclass(frozen=True, eq=False)
class LargestOut:
    """The law of the smaller runs (`fit`, `resamples`) and its error on the largest.

    `errors`: a row per configuration of the largest tier with its variables, `num_seeds`, `measured`, `predicted` and
    `relative_error`. `mean_error` keeps the sign (above 0: the law is too pessimistic), `mean_absolute_error` does not.
    `compute_factor`: largest compute over the largest that was fitted.
    """

    fit: Fit
    resamples: Bootstrap
    errors: pd.DataFrame
    mean_error: Estimate
    mean_absolute_error: Estimate
    compute_factor: float

    def __str__(self) -> str:
        """The headline."""
        absolute, signed = self.mean_absolute_error, self.mean_error
        return (
            f"Fitted to {self.fit.num_points} runs, it predicts the {len(self.errors)} largest configurations, at "
            f"{self.compute_factor:.3g} times the compute, with a mean error of {absolute.value:.2%} "
            f"({absolute.low:.2%} to {absolute.high:.2%}); mean with sign {signed.value:+.2%} "
            f"({signed.low:+.2%} to {signed.high:+.2%})."
        )


def leave_largest_out(
    form: Form,
    observations: Observations,
    way: Way = "runs",
    num_resamples: int = NUM_RESAMPLES,
    tier_factor: float = TIER_FACTOR,
    seed: int = 0,
) -> LargestOut:
    """The prediction error of `form` on the largest tier of `observations`, which must have the variable `C`.

    A `MissingDataError` when there is one tier only, or the smaller runs do not identify the law.
    """
    is_largest = largest_tier(observations, tier_factor)
    smaller, largest = observations.take(~is_largest), observations.take(is_largest)
    fit = identified_fit(form, smaller)
    resamples = bootstrap(fit, way, num_resamples, seed)
    errors = _errors(fit, largest)
    errors_Rm = _resampled_errors(resamples, largest, seed)
    return LargestOut(
        fit,
        resamples,
        errors,
        estimate(float(errors["relative_error"].mean()), errors_Rm.mean(axis=1)),
        estimate(float(errors["relative_error"].abs().mean()), np.abs(errors_Rm).mean(axis=1)),
        float(largest.values[COMPUTE].max() / smaller.values[COMPUTE].max()),
    )


def largest_tier(observations: Observations, factor: float = TIER_FACTOR) -> NDArray[np.bool_]:
    """[n] whether a run's compute is within `factor` of the largest."""
    if COMPUTE not in observations.values:
        raise MissingDataError("The largest runs are those of the most compute, and no column was named for C.")
    compute_n = observations.values[COMPUTE]
    is_largest = np.asarray(compute_n * factor >= compute_n.max())
    if is_largest.all():
        raise MissingDataError(
            f"All {len(observations)} runs are of one compute tier ({significant(float(compute_n.max()))} FLOPs).",
            "Add smaller runs.",
        )
    return is_largest


def _errors(fit: Fit, largest: Observations) -> pd.DataFrame:
    frame = pd.DataFrame({**largest.values, "measured": largest.loss, "configuration": largest.configuration})
    by_configuration = frame.groupby("configuration")
    errors = by_configuration.mean().assign(num_seeds=by_configuration.size())
    errors["predicted"] = fit.predict({name: errors[name].to_numpy() for name in fit.form.variables})
    errors["relative_error"] = errors["predicted"] / errors["measured"] - 1
    return errors.reset_index(drop=True)


def _resampled_errors(resamples: Bootstrap, largest: Observations, seed: int) -> Values:
    """[R, m] relative errors at the m configurations."""
    random = np.random.default_rng([seed, 1])
    configuration_n = largest.configuration
    first_m = np.unique(configuration_n, return_index=True)[1]
    points = {name: largest.values[name][first_m] for name in resamples.fit.form.variables}
    predicted_Rm = resamples.predictions(points)
    measured = [_drawn_means(largest.loss, configuration_n, random) for _ in predicted_Rm]
    return predicted_Rm / np.array(measured) - 1


def _drawn_means(loss_n: Values, configuration_n: NDArray[np.intp], random: np.random.Generator) -> Values:
    weights_n = draw(configuration_n, "seeds", random)
    return np.bincount(configuration_n, weights_n * loss_n) / np.bincount(configuration_n, weights_n)
