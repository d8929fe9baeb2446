"""Leaves each size out in turn: the law is fitted to the other sizes and predicts the configurations of the one left.

The largest size asks the law to extrapolate upwards, the smallest downwards, and the others ask it to interpolate. A
law that predicts the largest runs by luck is found out where it errs on the others (leave-one-group-out
cross-validation, Hastie, Tibshirani and Friedman 2009, section 7.10). The relative error is predicted / measured - 1,
where the seeds of one configuration are first averaged, as in `predict.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws.fit import FitError
from analysis.laws.forms import Form
from analysis.laws.identify import identified_fit
from analysis.laws.observations import Observations
from analysis.laws.predict import prediction_errors
from analysis.load_records import MissingDataError
from analysis.run_table import significant
from experiments.text import agreeing

SIZE = "N"
MIN_SIZES = 2


@dataclass(frozen=True, eq=False)
class SizesOut:
    """The errors of a law on each size that was left out of its fit, and a line for each size that it cannot predict.

    `errors` has a row per configuration with its variables, `num_seeds`, `measured`, `predicted` and `relative_error`.
    `by` names the variable whose values are the sizes.
    """

    errors: pd.DataFrame
    refused: tuple[str, ...]
    by: str = SIZE

    @property
    def by_size(self) -> pd.DataFrame:
        """Returns for each size the number of configurations and the mean error, with and without sign."""
        named = self.errors.assign(size_error=self.errors["relative_error"].abs())
        return named.groupby(self.by, as_index=False).agg(
            num_configurations=("measured", "size"),
            mean_error=("relative_error", "mean"),
            mean_absolute_error=("size_error", "mean"),
        )

    def __str__(self) -> str:
        """Says in one sentence how well the sizes are predicted that were left out, and which one worst."""
        sizes = self.by_size
        worst = sizes.iloc[int(sizes["mean_absolute_error"].to_numpy().argmax())]
        num_sizes = len(sizes) + len(self.refused)
        rest = f"; {len(self.refused)} could not be: {self.refused[0]}" if self.refused else ""
        return (
            f"Left out in turn, {len(sizes)} of {num_sizes} sizes {agreeing(len(sizes), 'is', 'are')} predicted with a "
            "mean error of "
            f"{sizes['mean_absolute_error'].mean():.2%}, the worst with {worst['mean_error']:+z.2%} "
            f"({self.by} = {significant(worst[self.by])}){rest.rstrip('.')}."
        )


def leave_each_size_out(form: Form, observations: Observations, by: str = SIZE) -> SizesOut:
    """Returns the errors of `form` on each size of `observations`, which must have the variable `by`.

    Models of one width differ in `N` where routers and dense ones activate differently many parameters: a law of
    several of them leaves a width out by another variable, which `form` need not have. Raises `MissingDataError` where
    there is one size only, or where the law is identified without none of the sizes.
    """
    sizes = np.unique(observations.values[by])
    if len(sizes) < MIN_SIZES:
        unit = "parameters" if by == SIZE else by
        raise MissingDataError(f"All runs have one size ({significant(float(sizes[0]))} {unit}).", "Add sizes.")
    errors, refused = [], []
    for size in sizes:
        is_left = observations.values[by] == size
        try:
            errors.append(
                prediction_errors(identified_fit(form, observations.take(~is_left)), observations.take(is_left))
            )
        except (MissingDataError, FitError) as error:
            refused.append(f"without {by} = {significant(float(size))}, {str(error).rstrip('.')}")
    if not errors:
        raise MissingDataError(f"The law is not identified without any one size: {refused[0]}.", "Add sizes.")
    return SizesOut(pd.concat(errors, ignore_index=True), tuple(refused), by)
