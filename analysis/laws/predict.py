"""The hold-out error of a law: how well it predicts the largest runs when it is fitted without them.

The runs of the largest compute tier are held out; the law is fitted to the others and predicts them. Shorter lengths of
a trunk that is held out are in neither part: with them in the fit, the law would have seen what the trunk deviates. The
relative error is predicted / measured - 1, where the seeds of one configuration are first averaged. With five
parameters small residuals are easy to reach, whereas extrapolation to larger compute is the purpose of a law.

The interval is a prediction interval: where the law holds, it contains 0 in 95 of 100 cases. In logarithms it is the
sum of two deviations:
- The law itself varies over reweighted units, which are configurations or trunks (`bootstrap.py`). This is widened by
  sqrt(C / nu) with nu = C - P, because resampling C units, to which P parameters were fitted, understates variances by
  nu / C.
- A new configuration deviates from the law in a way that its seeds share, and its mean over seeds scatters. The mean
  residuals of the fitted configurations contain both: s^2 is their mean square times C / nu. Where the new
  configuration has another number of seeds, the variance between seeds is rescaled to that number.
Both are multiplied by sqrt(nu / chi-squared of nu), since s is estimated from few units; for a linear law this gives
Student's prediction interval. There is none where C is not above P. The interval does not allow for a law of the wrong
form: where it excludes 0, the law does not hold at the largest runs.

Shapes: R resamples that gave a law, m configurations that are predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws.bootstrap import NUM_RESAMPLES, Bootstrap, BootstrapEstimate, bootstrap, estimate, num_units
from analysis.laws.fit import Fit
from analysis.laws.forms import Form, Values
from analysis.laws.identify import identified_fit
from analysis.laws.observations import Observations
from analysis.load_records import MissingDataError
from analysis.run_table import significant

COMPUTE = "C"
TIER_FACTOR = 1.1
"""Runs within this factor of the largest compute form one tier, because runs meet a compute budget only roughly."""
LARGEST_LOG_ERROR = 100.0
"""The limit to which log errors of a prediction are clipped; with very few configurations some would overflow."""


@dataclass(frozen=True, eq=False)
class LargestOut:
    """The law of the smaller runs (`fit`, `resamples`) and its error on the largest runs.

    `errors` has a row for each configuration of the largest tier with its variables, `num_seeds`, `measured`,
    `predicted` and `relative_error`. `mean_error` keeps the sign (above 0 the law predicts too high a loss);
    `mean_absolute_error` does not. `compute_factor` is the largest compute over the largest that was fitted.
    """

    fit: Fit
    resamples: Bootstrap
    errors: pd.DataFrame
    mean_error: BootstrapEstimate
    mean_absolute_error: BootstrapEstimate
    compute_factor: float

    def __str__(self) -> str:
        """Returns the sentence that a report shows as the law's headline."""
        absolute, signed = self.mean_absolute_error, self.mean_error
        return (
            f"Fitted to {self.fit.num_points} runs, it predicts the {len(self.errors)} largest configurations, at "
            f"{self.compute_factor:.3g} times the compute, with a mean error of {absolute.value:.2%} "
            f"({absolute.interval('.2%')}); mean with sign {signed.value:+z.2%} ({signed.interval('+z.2%')})."
        )


def leave_largest_out(
    form: Form,
    observations: Observations,
    num_resamples: int = NUM_RESAMPLES,
    tier_factor: float = TIER_FACTOR,
    seed: int = 0,
) -> LargestOut:
    """Returns the hold-out error of `form` on the largest tier of `observations`, which must have the variable `C`.

    Raises `MissingDataError` when there is only one tier, when all runs share trunks with it, or when the smaller runs
    do not identify the law, and `FitError` when the search or most of the resamples do not converge.
    """
    is_largest = largest_tier(observations, tier_factor)
    shares_unit = np.isin(observations.unit, observations.unit[is_largest])
    if shares_unit.all():
        raise MissingDataError(
            "All runs are lengths of the trunks that have the most compute, so that none of them is unseen.",
            "Add smaller sizes.",
        )
    smaller, largest = observations.take(~shares_unit), observations.take(is_largest)
    fit = identified_fit(form, smaller)
    resamples = bootstrap(fit, num_resamples, seed)
    errors = prediction_errors(fit, largest)
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
    """Returns the mask [n] of the runs whose compute is within `factor` of the largest.

    Raises `MissingDataError` where compute is not known or where all runs are of one tier.
    """
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


def prediction_errors(fit: Fit, unseen: Observations) -> pd.DataFrame:
    """Returns a row for each configuration that the law of `fit` has not seen, with what it predicts and its error.

    The columns are the variables, `measured` (a mean over seeds), `num_seeds`, `predicted` and `relative_error`.
    """
    frame = pd.DataFrame({**unseen.values, "measured": unseen.loss, "configuration": unseen.configuration})
    by_configuration = frame.groupby("configuration")
    errors = by_configuration.mean().assign(num_seeds=by_configuration.size())
    errors["predicted"] = fit.predict({name: errors[name].to_numpy() for name in fit.form.variables})
    errors["relative_error"] = errors["predicted"] / errors["measured"] - 1
    return errors.reset_index(drop=True)


def _likely_errors(resamples: Bootstrap, errors: pd.DataFrame, between_seeds: float, seed: int) -> Values:
    """Draws relative errors [R, m] at the m configurations of `errors`: the measured ones plus what chance may add."""
    random, fit = np.random.default_rng([seed, 1]), resamples.fit
    points = {name: errors[name].to_numpy() for name in fit.form.variables}
    moved_Rm = np.log(resamples.predictions(points)) - np.log(fit.predict(points))
    seeds_c, residual_c = _mean_residuals(fit)
    num = num_units(fit.observations.unit)
    freedom = max(num - len(fit.form.parameters), 1)
    other_seeds_m = 1 / errors["num_seeds"].to_numpy() - (1 / seeds_c).mean()
    squares = residual_c @ residual_c * num / len(residual_c)
    variance_m = np.maximum(squares / freedom + between_seeds * other_seeds_m, 0.0)
    apart_Rm = np.sqrt(variance_m) * random.standard_normal(moved_Rm.shape)
    # Dividing a normal number by the root of chi-squared over its degrees of freedom gives Student's t.
    few_R1 = np.sqrt(freedom / random.chisquare(freedom, (len(moved_Rm), 1)))
    log_error_Rm = np.log1p(errors["relative_error"].to_numpy()) + few_R1 * (
        np.sqrt(num / freedom) * moved_Rm + apart_Rm
    )
    return np.asarray(np.expm1(np.clip(log_error_Rm, -LARGEST_LOG_ERROR, LARGEST_LOG_ERROR)))


def _mean_residuals(fit: Fit) -> tuple[Values, Values]:
    """Returns the number of seeds and the mean residual of each fitted configuration."""
    configuration_n = fit.observations.configuration
    seeds_c = np.bincount(configuration_n).astype(float)
    return seeds_c, np.bincount(configuration_n, fit.residuals) / seeds_c


def _variance_between_seeds(*parts: Observations) -> float:
    """Returns the pooled variance of ln L within configurations, or 0 where every configuration has one seed."""
    squares, freedom = 0.0, 0
    for each in parts:
        log_loss, configuration_n = pd.Series(np.log(each.loss)), each.configuration
        squares += float(((log_loss - log_loss.groupby(configuration_n).transform("mean")) ** 2).sum())
        freedom += len(each) - int(configuration_n.max()) - 1
    return squares / freedom if freedom else 0.0
