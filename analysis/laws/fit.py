"""Fit a scaling law by minimizing the sum of the Huber losses of the residuals of ln L.

The objective is that of Hoffmann et al. 2022 (2203.15556, eq. 3) with their delta: the sum over the runs of
Huber(ln L_predicted - ln L_measured), quadratic within 1e-3 and linear beyond, so that single outliers have little
influence. The search starts from the best points of a grid (`start.py`). From each of them, nonlinear least squares
finds a basin of attraction; then BFGS with the analytic gradient minimizes the objective, in coordinates in which
it is well conditioned. The search is deterministic.

`fit` fits the law to any runs; `identify.identified_fit` also checks that the runs identify it. Intervals are computed
in `bootstrap.py`.
Shapes: n runs, P coordinates of the search.
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
"""The search has converged when a round of BFGS lowers the objective by no more than this share of it."""
SAME_VALLEY = 1e-3
"""Starts whose objectives after least squares differ by at most this share are taken to be in the same basin."""
FLAT = 1e-5
"""The tolerance of BFGS for the gradient, in units of delta and in well-conditioned coordinates."""
QUADRATIC_SHARE = 0.1
"""The assumed share of residuals within delta. Only these contribute curvature, so it sets BFGS's initial scale."""
FLATTEST = 1e-7
"""The lower limit of singular values, relative to the largest, by which the coordinates are rescaled."""


class FitError(EcditError):
    """Raised when the search for a fit found no minimum."""


class Optimum(NamedTuple):
    """The end of a search: the coordinates theta [P], the objective there, and whether the search converged."""

    theta_P: Values
    objective: float
    is_settled: bool


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to runs: `residuals` [n] are ln measured - ln predicted, `theta_P` the coordinates of the search."""

    form: Form
    observations: Observations
    parameters: Mapping[str, float]
    residuals: Values
    objective: float
    is_settled: bool
    theta_P: Values

    @property
    def num_points(self) -> int:
        """Returns the number of runs that the law was fitted to."""
        return len(self.observations)

    def predict(self, values: Mapping[str, ArrayLike]) -> Values:
        """Returns the loss at `values`, a mapping from variable to number or array."""
        return self.form.loss(values, self.parameters)


def fit(form: Form, observations: Observations, delta: float = HUBER_DELTA) -> Fit:
    """Fits the law of `form` to all runs. Raises `FitError` where the best search did not converge."""
    found = search(form, observations, delta)
    require_settled(found)
    return found


def require_settled(found: Fit) -> None:
    """Raises `FitError` where the search ended without converging to a minimum."""
    if not found.is_settled:
        where = ", ".join(f"{name} {value:.3g}" for name, value in found.parameters.items())
        raise FitError(
            f"The fit of {found.form.equation} to {found.num_points} runs runs away ({where}).", "Fit a simpler law."
        )


def search(form: Form, observations: Observations, delta: float = HUBER_DELTA) -> Fit:
    """Fits like `fit`, but returns the last point of a search that did not converge, with `is_settled` False."""
    model, log_loss_n = LogModel(form, observations.values), np.log(observations.loss)
    weights_n = np.ones(len(log_loss_n))
    valleys = [_least_squares(model, log_loss_n, theta_P, delta) for theta_P in starts(model, log_loss_n)]
    found = [descend(model, log_loss_n, weights_n, valley.theta_P, delta) for valley in _different(valleys)]
    best = min(found, key=lambda each: each.objective)
    residuals = log_loss_n - model.log_loss(best.theta_P)
    return Fit(form, observations, model.unpack(best.theta_P), residuals, *best[1:], best.theta_P)


def huber(residuals_n: Values, delta: float) -> Values:
    """Returns the Huber loss [n] of residuals: r^2 / 2 within delta, and delta (|r| - delta / 2) beyond."""
    size_n = np.abs(residuals_n)
    return np.where(size_n <= delta, 0.5 * size_n**2, delta * (size_n - 0.5 * delta))


def descend(
    model: LogModel, log_loss_n: Values, weights_n: Values, theta_P: Values, delta: float = HUBER_DELTA
) -> Optimum:
    """Minimizes the weighted sum of Huber losses from `theta_P`.

    The second derivative of the Huber loss jumps at delta, so BFGS can stop before the gradient is near 0. It is then
    restarted from there, in coordinates rescaled at that point, up to `MAX_ROUNDS` times.
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
    """Runs BFGS once; returns theta, the objective, and whether the gradient is near 0.

    The objective is never above that of the start.
    """
    # BFGS starts with the identity as its Hessian. In round coordinates the true one is about QUADRATIC_SHARE / delta,
    # because only residuals within delta contribute curvature, so coordinates are scaled by its inverse root.
    step = np.sqrt(delta / QUADRATIC_SHARE)
    round_PP = step * _round_coordinates(model.log_loss_and_gradient(theta_P)[1] * np.sqrt(weights_n)[:, None])

    def scaled(z_P: Values) -> tuple[float, Values]:
        predicted_n, gradient_nP = model.log_loss_and_gradient(theta_P + round_PP @ z_P)
        residuals_n = predicted_n - log_loss_n
        # The derivative of the Huber loss, divided by delta as the objective is, is the residual clipped at delta.
        slope_n = weights_n * np.clip(residuals_n / delta, -1, 1)
        return float(weights_n @ huber(residuals_n, delta)) / delta, round_PP.T @ (gradient_nP.T @ slope_n)

    options = {"gtol": FLAT * step, "maxiter": 400}
    found = minimize(scaled, np.zeros(len(theta_P)), jac=True, method="BFGS", options=options)
    return theta_P + round_PP @ found.x, float(found.fun) * delta, bool(found.success)


def _round_coordinates(jacobian_nP: Values) -> Values:
    """Returns the matrix [P, P] of coordinates in which a unit step in any direction changes ln L by a norm of 1."""
    _, singular_P, direction_PP = np.linalg.svd(jacobian_nP, full_matrices=False)
    # Directions that hardly change ln L would get huge steps, so their singular values are bounded below.
    scale_P = np.maximum(singular_P, FLATTEST * singular_P[0])
    return np.asarray(direction_PP.T / scale_P)


def _least_squares(model: LogModel, log_loss_n: Values, theta_P: Values, delta: float) -> Optimum:
    """Minimizes the sum of squared residuals from a start; the objective returned is the Huber sum there."""
    found = least_squares(
        lambda theta_P: model.log_loss(theta_P) - log_loss_n,
        theta_P,
        jac=lambda theta_P: model.log_loss_and_gradient(theta_P)[1],
        x_scale="jac",
        max_nfev=200,
    )
    return Optimum(found.x, float(huber(found.fun, delta).sum()), bool(found.success))


def _different(found: list[Optimum]) -> list[Optimum]:
    """Keeps one optimum of each basin; optima with nearly the same objective are taken to be in one basin."""
    kept: list[Optimum] = []
    for each in found:
        if not any(abs(each.objective - other.objective) <= SAME_VALLEY * other.objective for other in kept):
            kept.append(each)
    return kept
