"""The fit of a law: the sum of Huber losses of the logarithmic residuals, from a start by variable projection.

The objective is that of Hoffmann et al. 2022 (2203.15556, eq. 3) with their delta: sum over the runs of
Huber(ln L_predicted - ln L_measured), quadratic within 1e-3 and linear beyond, so that single bad runs pull little.
From each of the best starts (`start.py`) least squares finds the valley, then BFGS with the analytic gradient, in
coordinates in which the problem is round, descends the objective itself. Nothing is random.

`fit` fits whatever it is given; `identify.identified_fit` asks whether the data can tell. Intervals: `bootstrap.py`.
Shapes: n runs, P coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares, minimize

from analysis.laws.forms import Form, Values
from analysis.laws.log_model import LogModel
from analysis.laws.observations import Observations
from analysis.laws.start import starts
from experiments.errors import EcditError

HUBER_DELTA = 1e-3
MAX_ROUNDS = 5
SETTLED = 1e-5
"""A round that lowers the objective by a smaller share ends the search."""
SAME_VALLEY = 1e-3
"""Starts whose objectives after least squares differ by a smaller share lead to one minimum."""
FLAT = 1e-5
"""Gradient, over delta and in round coordinates, that counts as 0."""
QUADRATIC_SHARE = 0.1
"""Of the residuals, about how many are within delta: the curvature that BFGS starts from."""
FLATTEST = 1e-7
"""Directions in which the losses move less than this, relative to the steepest, are not stretched further."""


class FitError(EcditError):
    """A search that found no minimum."""


class Optimum(NamedTuple):
    """Where a search ended: theta [P], the objective there and whether it had settled."""

    theta_P: Values
    objective: float
    is_settled: bool


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to runs. `residuals` [n] are ln measured - ln predicted; `theta_P` the coordinates of the search."""

    form: Form
    observations: Observations
    parameters: Mapping[str, float]
    residuals: Values
    objective: float
    is_settled: bool
    theta_P: Values

    @property
    def num_points(self) -> int:
        """Number of runs fitted."""
        return len(self.observations)

    def predict(self, values: Mapping[str, ArrayLike]) -> Values:
        """The loss at `values` (variable -> number or array)."""
        return self.form.loss(values, self.parameters)


def fit(form: Form, observations: Observations, delta: float = HUBER_DELTA) -> Fit:
    """The law of `form` nearest to all runs. A `FitError` where the search runs away from every start."""
    found = search(form, observations, delta)
    require_settled(found)
    return found


def require_settled(found: Fit) -> None:
    """A `FitError` where the search ended without a minimum."""
    if not found.is_settled:
        where = ", ".join(f"{name} {value:.3g}" for name, value in found.parameters.items())
        raise FitError(
            f"The fit of {found.form.equation} to {found.num_points} runs runs away ({where}).", "Fit a simpler law."
        )


def search(form: Form, observations: Observations, delta: float = HUBER_DELTA) -> Fit:
    """Like `fit`, but where the search runs away, it is returned as far as it came, with `is_settled` False."""
    model, log_loss_n = LogModel(form, observations.values), np.log(observations.loss)
    weights_n = np.ones(len(log_loss_n))
    valleys = [_least_squares(model, log_loss_n, theta_P, delta) for theta_P in starts(model, log_loss_n)]
    found = [descend(model, log_loss_n, weights_n, valley.theta_P, delta) for valley in _different(valleys)]
    best = min(found, key=lambda each: each.objective)
    residuals = log_loss_n - model.log_loss(best.theta_P)
    return Fit(form, observations, model.unpack(best.theta_P), residuals, *best[1:], best.theta_P)


def huber(residuals_n: Values, delta: float) -> Values:
    """[n] r^2 / 2 within delta, delta (|r| - delta / 2) beyond."""
    size_n = np.abs(residuals_n)
    return np.where(size_n <= delta, 0.5 * size_n**2, delta * (size_n - 0.5 * delta))


def descend(
    model: LogModel, log_loss_n: Values, weights_n: Values, theta_P: Values, delta: float = HUBER_DELTA
) -> Optimum:
    """The minimum of the weighted sum of Huber losses that is below `theta_P`.

    Where BFGS stops without a gradient near 0, because of the kinks of Huber, it goes on from there in new coordinates.
    """
    objective = np.inf
    for _ in range(MAX_ROUNDS):
        theta_P, lower, is_flat = _bfgs(model, log_loss_n, weights_n, theta_P, delta)
        if is_flat or objective - lower <= SETTLED * lower:
            return Optimum(theta_P, lower, True)
        objective = lower
    return Optimum(theta_P, objective, False)


def _bfgs(
    model: LogModel, log_loss_n: Values, weights_n: Values, theta_P: Values, delta: float
) -> tuple[Values, float, bool]:
    """One round: theta and the objective at its end, never above its start, and whether the gradient is near 0."""
    step = np.sqrt(delta / QUADRATIC_SHARE)
    round_PP = step * _round_coordinates(model.log_loss_and_gradient(theta_P)[1] * np.sqrt(weights_n)[:, None])

    def scaled(z_P: Values) -> tuple[float, Values]:
        predicted_n, gradient_nP = model.log_loss_and_gradient(theta_P + round_PP @ z_P)
        residuals_n = predicted_n - log_loss_n
        slope_n = weights_n * np.clip(residuals_n / delta, -1, 1)
        return float(weights_n @ huber(residuals_n, delta)) / delta, round_PP.T @ (gradient_nP.T @ slope_n)

    options = {"gtol": FLAT * step, "maxiter": 400}
    found = minimize(scaled, np.zeros(len(theta_P)), jac=True, method="BFGS", options=options)
    return theta_P + round_PP @ found.x, float(found.fun) * delta, bool(found.success)


def _round_coordinates(jacobian_nP: Values) -> Values:
    """[P, P] the change of coordinates after which a step of 1 in any direction moves the losses by 1."""
    _, singular_P, direction_PP = np.linalg.svd(jacobian_nP, full_matrices=False)
    scale_P = np.maximum(singular_P, FLATTEST * singular_P[0])
    return np.asarray(direction_PP.T / scale_P)


def _least_squares(model: LogModel, log_loss_n: Values, theta_P: Values, delta: float) -> Optimum:
    """The valley below a start: the minimum of the sum of squares, with the objective there."""
    found = least_squares(
        lambda theta_P: model.log_loss(theta_P) - log_loss_n,
        theta_P,
        jac=lambda theta_P: model.log_loss_and_gradient(theta_P)[1],
        x_scale="jac",
        max_nfev=200,
    )
    return Optimum(found.x, float(huber(found.fun, delta).sum()), bool(found.success))


def _different(found: list[Optimum]) -> list[Optimum]:
    """Each valley once: the objective tells them apart."""
    kept: list[Optimum] = []
    for each in found:
        if not any(abs(each.objective - other.objective) <= SAME_VALLEY * other.objective for other in kept):
            kept.append(each)
    return kept
