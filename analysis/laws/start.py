"""Starting points of the search for a law, by variable projection on a grid (Golub and Pereyra 1973).

For given exponents (and saturation) a law is linear in its amplitudes. They follow from non-negative least squares
of the relative error, so only the exponents need a grid. The logarithm of a law of one term without an amplitude is
linear in all its parameters. The search itself is in `fit.py`.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.ndimage import minimum_filter
from scipy.optimize import nnls

from analysis.laws.forms import Values
from analysis.laws.log_model import LogModel, log_saturated

SATURATION_GRID = tuple(
    (np.log(start), np.log(np.log(most / start))) for start in (1.0, 2.0, 4.0) for most in (64, 512)
)
NUM_STARTS = 4
SMALLEST_SHARE = 1e-4
"""The share of the loss at which a vanishing amplitude starts; from ln 0 the search could not move."""


def starts(model: LogModel, log_loss_n: Values) -> list[Values]:
    """Returns the coordinates theta [P] of the best `NUM_STARTS` local minima of the grid, best first."""
    found = [each for saturation in _saturations(model) for each in _projected(model, log_loss_n, saturation)]
    found.sort(key=lambda each: each[0])
    return [theta_P for _, theta_P in found[:NUM_STARTS]]


def _saturations(model: LogModel) -> list[Values]:
    return [np.array(each) for each in SATURATION_GRID] if model.form.is_saturated else [np.array([])]


def _projected(model: LogModel, log_loss_n: Values, saturation_K: Values) -> list[tuple[float, Values]]:
    """Returns (sum of absolute relative errors, theta) for each local minimum of the grid at one saturation."""
    x_nP = _features(model, saturation_K)
    if not model.is_amplitude.any():
        linear_P, *_ = np.linalg.lstsq(x_nP, log_loss_n, rcond=None)
        return [(float(np.abs(x_nP @ linear_P - log_loss_n).sum()), np.concatenate([linear_P, saturation_K]))]
    position = {coefficient.parameter: p for p, coefficient in enumerate(model.form.coefficients)}
    points = np.array(list(product(*model.form.grid.values())))
    theta_GP = np.zeros((len(points), len(position)))
    theta_GP[:, [position[name] for name in model.form.grid]] = points
    error_G = np.array([_solve_amplitudes(model, x_nP, log_loss_n, theta_P) for theta_P in theta_GP])
    on_grid = error_G.reshape([len(values) for values in model.form.grid.values()])
    lowest = np.flatnonzero(on_grid == minimum_filter(on_grid, size=3))
    return [(float(error_G[i]), np.concatenate([theta_GP[i], saturation_K])) for i in lowest]


def _features(model: LogModel, saturation_K: Values) -> Values:
    if not model.form.is_saturated:
        return model.x_nP
    assert model.experts is not None
    log_experts_n, _ = log_saturated(model.experts, saturation_K)
    return np.where(model.has_experts, model.x_nP * log_experts_n[:, None], model.x_nP)


def _solve_amplitudes(model: LogModel, x_nP: Values, log_loss_n: Values, theta_P: Values) -> float:
    """Writes the logarithms of the best amplitudes into `theta_P` and returns the sum of absolute relative errors."""
    # Dividing by the measured losses turns the residuals into relative errors. Each column is scaled by its largest
    # element, as exponentials of the grid would overflow, and the scale is taken off the logarithm of its amplitude.
    log_basis_nT = np.add.reduceat(x_nP * theta_P, model.first_of_term, axis=1) - log_loss_n[:, None]
    log_scale_T = log_basis_nT.max(axis=0)
    basis_nT = np.exp(log_basis_nT - log_scale_T)
    amplitude_T, _ = nnls(basis_nT, np.ones(len(log_loss_n)))
    theta_P[model.is_amplitude] = np.log(np.maximum(amplitude_T, SMALLEST_SHARE)) - log_scale_T
    return float(np.abs(basis_nT @ amplitude_T - 1).sum())
