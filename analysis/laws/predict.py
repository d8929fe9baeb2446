"""The headline of a law: how far off it is on the largest runs when it has not seen them.

The runs of the largest compute tier are left out, the law is fitted to the others and predicts them. The relative error
is predicted / measured - 1, where the seeds of one configuration are first averaged. A small residual is easy with five
parameters; this error is what a law is for.

The interval is that of a prediction: 0 lies in it in 95 of 100 cases where the law holds. In logarithms it adds up
- how far the law itself moves over reweighted configurations (`bootstrap.py`), widened by sqrt(C / nu): resampling C
  configurations, to which P parameters were fitted, understates variances by nu / C with nu = C - P;
- how far a new configuration lies from the law, which the seeds of it share, and the scatter of its mean over seeds.
  Both are in the mean residuals of the fitted configurations: s^2 is their sum of squares over nu. Where the new
  configuration has another number of seeds, the variance between seeds is scaled to it.
Both are multiplied by sqrt(nu / chi-squared of nu), since s is an estimate of few configurations: for a linear law that
is Student's prediction interval. What is not inside is a law of the wrong form: where an interval excludes 0, the law
does not hold at the largest runs.

Shapes: R resamples that gave a law, m configurations that are predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws.bootstrap import NUM_RESAMPLES, Bootstrap, Estimate, bootstrap, estimate
from analysis.laws.fit import Fit
from analysis.laws.forms import Form, Values
from analysis.laws.identify import identified_fit
from analysis.laws.observations import Observations
from analysis.load import MissingDataError
from analysis.tables import significant

COMPUTE = "C"
TIER_FACTOR = 1.1
"""Runs within this factor of the largest compute are one tier: budgets are met approximately."""
LARGEST_LOG_ERROR = 100.0
"""Of a prediction: with very few configurations single draws would overflow."""


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
    resamples = bootstrap(fit, num_resamples, seed)
    errors = _errors(fit, largest)
    errors_Rm = _likely_errors(resamples, errors, _variance_between_seeds(smaller, largest), seed)
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


def _likely_errors(resamples: Bootstrap, errors: pd.DataFrame, between_seeds: float, seed: int) -> Values:
    """[R, m] relative errors at the m configurations of `errors`, as they may come out where the law holds."""
    random, fit = np.random.default_rng([seed, 1]), resamples.fit
    points = {name: errors[name].to_numpy() for name in fit.form.variables}
    moved_Rm = np.log(resamples.predictions(points)) - np.log(fit.predict(points))
    seeds_c, residual_c = _mean_residuals(fit)
    num, freedom = len(residual_c), max(len(residual_c) - len(fit.form.parameters), 1)
    other_seeds_m = 1 / errors["num_seeds"].to_numpy() - (1 / seeds_c).mean()
    variance_m = np.maximum(residual_c @ residual_c / freedom + between_seeds * other_seeds_m, 0.0)
    apart_Rm = np.sqrt(variance_m) * random.standard_normal(moved_Rm.shape)
    few_R1 = np.sqrt(freedom / random.chisquare(freedom, (len(moved_Rm), 1)))
    log_error_Rm = np.log1p(errors["relative_error"].to_numpy()) + few_R1 * (
        np.sqrt(num / freedom) * moved_Rm + apart_Rm
    )
    return np.asarray(np.expm1(np.clip(log_error_Rm, -LARGEST_LOG_ERROR, LARGEST_LOG_ERROR)))


def _mean_residuals(fit: Fit) -> tuple[Values, Values]:
    """Of each fitted configuration its number of seeds and its mean residual."""
    configuration_n = fit.observations.configuration
    seeds_c = np.bincount(configuration_n).astype(float)
    return seeds_c, np.bincount(configuration_n, fit.residuals) / seeds_c


def _variance_between_seeds(*parts: Observations) -> float:
    """The variance of ln L within configurations, 0 where every configuration has one seed."""
    squares, freedom = 0.0, 0
    for each in parts:
        log_loss, configuration_n = pd.Series(np.log(each.loss)), each.configuration
        squares += float(((log_loss - log_loss.groupby(configuration_n).transform("mean")) ** 2).sum())
        freedom += len(each) - int(configuration_n.max()) - 1
    return squares / freedom if freedom else 0.0
