"""The logarithm of a law and its derivatives, in the coordinates of the search.

The coordinates theta [P] are the parameters of the form in their order, with amplitudes as logarithms. Where the
saturation is fitted, ln E_start and ln ln(E_max / E_start) follow. Any real theta is then a valid law, with positive
amplitudes and E_start < E_max. Let x_np be the signed product of logarithms of variables that coefficient p multiplies.
Then term t is exp(sum_p theta_p x_np) over the coefficients p of t, and ln L is the log-sum-exp over terms. Its
derivative with respect to theta_p is x_np times the share of p's term in the loss.

Shapes: n runs, P coordinates, T terms, K saturation coordinates (0 or 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.laws.forms import SATURATION, Form, Values, saturated

EXPERTS = "experts"
LARGEST_LOG = 700.0
SATURATION_LIMITS = np.array([[-3.0, 6.0], [-4.0, 4.0]])
"""The ranges to which ln E_start and ln ln(E_max / E_start) are clipped, so that the law stays finite in float64."""


class LogModel:
    """Computes ln L of `form`, and its derivatives, at the n runs of `values`."""

    def __init__(self, form: Form, values: Mapping[str, Values]) -> None:
        self.form = form
        self.experts = values.get(EXPERTS)
        self.has_experts = np.array([EXPERTS in each.logs_of for each in form.coefficients])
        self.term_of = np.repeat(np.arange(len(form.terms)), [len(term) for term in form.terms])
        self.first_of_term = np.flatnonzero(np.diff(self.term_of, prepend=-1))
        self.is_amplitude = np.array([each.is_amplitude for each in form.coefficients])
        num_runs = len(next(iter(values.values())))
        self.x_nP = np.empty((num_runs, len(form.coefficients)))
        for p, coefficient in enumerate(form.coefficients):
            logs = [np.log(values[name]) for name in coefficient.logs_of if not (form.is_saturated and name == EXPERTS)]
            self.x_nP[:, p] = coefficient.sign * np.prod(logs, axis=0) if logs else coefficient.sign

    def log_loss(self, theta_P: Values) -> Values:
        """Returns ln L [n]."""
        return self.log_loss_and_gradient(theta_P)[0]

    def log_loss_and_gradient(self, theta_P: Values) -> tuple[Values, Values]:
        """Returns ln L [n] and its derivatives [n, P] with respect to theta."""
        num = len(self.term_of)
        x_nP, slopes_nK = self._features(theta_P[num:])
        # The largest term is factored out of the sum, because single exponentials may overflow during the search.
        term_nT = np.add.reduceat(x_nP * theta_P[:num], self.first_of_term, axis=1)
        largest_n1 = term_nT.max(axis=1, keepdims=True)
        share_nT = np.exp(term_nT - largest_n1)
        total_n1 = share_nT.sum(axis=1, keepdims=True)
        share_nP = (share_nT / total_n1)[:, self.term_of]
        gradient_nP = share_nP * x_nP
        log_loss_n = (largest_n1 + np.log(total_n1))[:, 0]
        if slopes_nK is None:
            return log_loss_n, gradient_nP
        # By the chain rule through ln E^, on which the features of `has_experts` depend linearly.
        by_log_experts_n = (share_nP * self.x_nP * theta_P[:num])[:, self.has_experts].sum(axis=1)
        return log_loss_n, np.concatenate([gradient_nP, by_log_experts_n[:, None] * slopes_nK], axis=1)

    def _features(self, saturation_K: Values) -> tuple[Values, Values | None]:
        if not self.form.is_saturated:
            return self.x_nP, None
        assert self.experts is not None
        log_experts_n, slopes_nK = log_saturated(self.experts, saturation_K)
        return np.where(self.has_experts, self.x_nP * log_experts_n[:, None], self.x_nP), slopes_nK

    def unpack(self, theta_P: Values) -> dict[str, float]:
        """Returns the parameters of the law in its printed form, with amplitudes as positive numbers."""
        num = len(self.term_of)
        natural = np.where(self.is_amplitude, np.exp(np.clip(theta_P[:num], -LARGEST_LOG, LARGEST_LOG)), theta_P[:num])
        found = dict(zip(self.form.parameters[:num], natural.tolist(), strict=True))
        return (
            found | dict(zip(SATURATION, saturation(theta_P[num:]), strict=True)) if self.form.is_saturated else found
        )


def saturation(coordinates_K: Values) -> tuple[float, float]:
    """Returns E_start and E_max of the saturation coordinates."""
    log_start, log_ratio = np.clip(coordinates_K, *SATURATION_LIMITS.T)
    return float(np.exp(log_start)), float(np.exp(log_start + np.exp(log_ratio)))


def log_saturated(experts: Values, coordinates_K: Values) -> tuple[Values, Values]:
    """Returns ln E^ [n] and its derivatives [n, K] with respect to the saturation coordinates."""
    E_start, E_max = saturation(coordinates_K)
    E_hat = saturated(experts, E_start, E_max)
    start, most = 1 / E_start, 1 / E_max
    shifted = experts - 1 + 1 / (start - most)
    ratio = np.log(E_max / E_start)
    slopes = []
    for d_start, d_most in ((-start, -most), (0.0, -most * ratio)):
        d_inverse = (d_start - d_most) / (shifted * (start - most)) ** 2 + d_most
        slopes.append(-E_hat * d_inverse)
    is_inside = (coordinates_K > SATURATION_LIMITS[:, 0]) & (coordinates_K < SATURATION_LIMITS[:, 1])
    return np.log(E_hat), np.stack(slopes, axis=1) * is_inside
