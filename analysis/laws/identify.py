"""Decide whether the runs identify a law; one that they do not is refused, and the message says what is missing.

Before the fit, the design must have (`design_problems`): enough configurations for the number of parameters; enough
different values of each variable, over a span of at least `MIN_SPAN`; and no two variables that are almost collinear.
After the fit, a law is refused at its optimum (`fit_problems`) for any of these reasons:
- The condition number of the Jacobian, with columns scaled to length 1, exceeds `MAX_CONDITION`: the runs do not
  separate some parameters.
- The standard error of an exponent, or of the saturation, is large.
- The loss rises with N, D or C at any run, or with the experts on average over the runs: the laws describe losses that
  fall.
- The same law without its floor fits as well. The sums of absolute residuals S_0 without and S_1 with the floor are
  compared by the likelihood ratio of least absolute deviations (Koenker and Bassett 1982), 4 f(0) (S_0 - S_1) with
  f(0) = 1 / (pi mean|r|) for normal residuals, against the 95% quantile of chi-squared with 1 degree of freedom.
Standard errors are those of least absolute deviations, which Huber's loss approaches where residuals exceed its delta:
sqrt(pi / 2) sigma (J^T J)^-1/2, with sigma = sqrt(pi / 2) mean|r|.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from analysis.laws.fit import Fit, require_settled, search
from analysis.laws.forms import SATURATION, Form, Term, Values, saturated
from analysis.laws.log_model import LogModel
from analysis.laws.observations import EXPERTS, Observations
from analysis.load_records import MissingDataError
from analysis.run_table import significant

MIN_SPAN = {"N": 2.0, "D": 2.0, "C": 4.0, EXPERTS: 2.0}
"""The smallest ratio of the largest to the smallest value of each variable for which a law is fitted."""
MAX_CORRELATION = 0.98
"""The largest correlation of the logarithms of two variables for which their effects can be separated."""
MAX_CONDITION = 1e7
MAX_RELATIVE_ERROR = 0.5
"""The limit of an exponent's standard error over its value; beyond it the exponent is not distinguished from 0."""
MAX_LOG_ERROR = 1.0
"""The largest standard error of ln E_max for which E_max counts as identified."""
BEYOND_EXPERTS = 100.0
"""The limit of E_max over the most experts trained; beyond it the runs show no saturation."""
MORE_EXPERTS = "Add runs of more experts, or fit the form that is not saturated"
NO_FLOOR = 1e-3
"""The share of the loss below which the search has removed the floor."""
NO_TERM = 1e-6
"""The share of the loss below which the search has removed a term of N, D or C."""
SMALLEST_RESIDUAL = 1e-9
"""The smallest mean absolute residual of ln L that is taken at its value; below it there is only rounding error."""
SMALL_STEP = 1e-4
"""The step in ln E of a derivative. Dense models have E = 1, so that the law is also asked just below it."""
CHI_SQUARED_95 = float(stats.chi2.ppf(0.95, 1))

PLURALS = {
    "N": "sizes",
    "D": "numbers of images",
    "C": "amounts of compute",
    EXPERTS: "numbers of experts",
}


class Problem(NamedTuple):
    """A reason to refuse a law: `kind` names it without numbers, `message` gives them, `remedy` says what to train."""

    kind: str
    message: str
    remedy: str


def identified_fit(form: Form, observations: Observations) -> Fit:
    """Returns the fit of `form`. Raises `MissingDataError` naming what is missing, or `FitError` without a minimum."""
    _refuse(form, design_problems(form, observations))
    found = search(form, observations)
    _refuse(form, fit_problems(found))
    require_settled(found)
    return found


def _refuse(form: Form, problems: list[Problem]) -> None:
    if problems:
        raise MissingDataError(f"{form.equation} cannot be fitted: {problems[0].message}.", f"{problems[0].remedy}.")


def design_problems(form: Form, observations: Observations) -> list[Problem]:
    """Returns what the values of the variables lack for a fit of `form`, without using the losses."""
    values = {name: observations.values[name] for name in form.variables}
    too_few = [problem for name in form.variables for problem in _range_problems(form, name, values[name])]
    pairs = combinations(form.variables, 2) if not too_few else ()
    together = [problem for one, other in pairs for problem in _correlation_problems(one, other, values)]
    return [*too_few, *together, *_count_problems(form, values)]


def _range_problems(form: Form, name: str, values_n: Values) -> list[Problem]:
    different, need = np.unique(values_n), form.min_distinct[name]
    if len(different) < need:
        have = ", ".join(significant(value) for value in different)
        message = (
            f"it needs at least {need} different {PLURALS[name]} ({name}) and the runs have {len(different)} ({have})"
        )
        return [Problem(f"fewer than {need} different {name}", message, f"Add runs of other {PLURALS[name]}")]
    span = float(different[-1] / different[0])
    if span < MIN_SPAN[name]:
        message = f"{name} spans a factor of {span:.3g} only, and at least {MIN_SPAN[name]:g} is needed"
        return [Problem(f"{name} spans too little", message, f"Add runs of smaller and larger {PLURALS[name]}")]
    return []


def _correlation_problems(one: str, other: str, values: dict[str, Values]) -> list[Problem]:
    correlation = float(np.corrcoef(np.log(values[one]), np.log(values[other]))[0, 1])
    if abs(correlation) <= MAX_CORRELATION:
        return []
    together = "rise together" if correlation > 0 else "go against each other"
    how = f"{together} (correlation of their logarithms {correlation:.3f})"
    message = f"{one} and {other} {how}, so their shares cannot be told"
    remedy = f"Train one of the {PLURALS[one]} at different {PLURALS[other]}"
    return [Problem(f"{one} and {other} {together}", message, remedy)]


def _count_problems(form: Form, values: dict[str, Values]) -> list[Problem]:
    num, need = len(np.unique(np.stack(list(values.values())), axis=1).T), len(form.parameters) + 1
    if num >= need:
        return []
    message = f"its {need - 1} parameters need at least {need} different combinations of {' and '.join(values)}"
    return [
        Problem(
            f"fewer than {need} combinations", f"{message}, and the runs have {num}", "Add runs of other combinations"
        )
    ]


def fit_problems(found: Fit) -> list[Problem]:
    """Returns the reasons why the losses do not identify the law, judged at the optimum."""
    model = LogModel(found.form, found.observations.values)
    jacobian_nP = model.log_loss_and_gradient(found.theta_P)[1]
    names, floor = found.form.parameters, _floor_problems(found)
    vanished = [*_vanished_problems(found.form, jacobian_nP), *_unsaturated_problems(found)]
    if vanished:
        return [*vanished, *floor]
    if floor and jacobian_nP[:, 0].max() < NO_FLOOR:  # The floor's derivatives vanish and would make J singular.
        names, jacobian_nP = names[1:], jacobian_nP[:, 1:]
    alike = _condition_problems(names, jacobian_nP)
    if alike:
        return [*floor, *alike]
    error_PP = _covariance(found, jacobian_nP)
    exponents = _exponent_problems(found, names, error_PP)
    return [*exponents, *_rising_problems(found), *floor, *_saturation_problems(found, error_PP)]


def _vanished_problems(form: Form, jacobian_nP: Values) -> list[Problem]:
    """Returns a problem for each term that is a negligible share of the loss.

    The share of a term is the derivative of ln L with respect to the logarithm of the term's amplitude.
    """
    problems, first = [], 0
    for term in form.terms:
        variables = sorted({name for each in term for name in each.logs_of if name != EXPERTS})
        if term[0].is_amplitude and variables and jacobian_nP[:, first].max() < NO_TERM:
            (variable,) = variables
            message = f"the losses do not fall with {variable} beyond their noise"
            problems.append(
                Problem(f"no dependence on {variable}", message, f"Widen the range of {variable}, or add seeds")
            )
        first += len(term)
    return problems


def _unsaturated_problems(found: Fit) -> list[Problem]:
    if not found.form.is_saturated:
        return []
    E_max, most = found.parameters["E_max"], float(found.observations.values[EXPERTS].max())
    if E_max <= BEYOND_EXPERTS * most:
        return []
    message = f"the losses show no saturation up to {most:g} experts (E_max came out as {E_max:.2g})"
    return [Problem("no saturation", message, MORE_EXPERTS)]


def condition(jacobian_nP: Values) -> tuple[float, Values]:
    """Returns the condition number after scaling columns to length 1, and the direction [P] that moves ln L least."""
    length_P = np.linalg.norm(jacobian_nP, axis=0)
    if not length_P.all():
        return np.inf, (length_P == 0).astype(float)
    _, singular_P, direction_PP = np.linalg.svd(jacobian_nP / length_P, full_matrices=False)
    smallest = float(singular_P[-1])
    return (float(singular_P[0]) / smallest if smallest else np.inf), np.abs(direction_PP[-1])


def _condition_problems(names: Sequence[str], jacobian_nP: Values) -> list[Problem]:
    number, direction_P = condition(jacobian_nP)
    if number <= MAX_CONDITION:
        return []
    alike = [name for name, share in zip(names, direction_P, strict=True) if share > 0.1]
    message = f"the runs do not tell {' and '.join(alike)} apart (condition number of the Jacobian {number:.1e})"
    return [Problem("parameters not told apart", message, "Add runs in which one variable changes alone")]


def _covariance(found: Fit, jacobian_nP: Values) -> Values:
    """Returns the covariance [P, P] of theta, by linearization at the optimum."""
    # Columns differ by many orders of magnitude. They are scaled to length 1 for the inversion, and scaled back after.
    num, num_parameters = jacobian_nP.shape
    mean_absolute = float(np.abs(found.residuals).sum()) / max(num - num_parameters, 1)
    length_P = np.linalg.norm(jacobian_nP, axis=0)
    scaled_nP = jacobian_nP / length_P
    inverse_PP = np.linalg.inv(scaled_nP.T @ scaled_nP) / np.outer(length_P, length_P)
    return np.asarray((np.pi / 2 * mean_absolute) ** 2 * inverse_PP)


def _floor_problems(found: Fit) -> list[Problem]:
    if found.form.floor is None:
        return []
    without = search(found.form.without_floor(), found.observations)
    num, mean_absolute = found.num_points, float(np.abs(found.residuals).mean())
    freedom = max(num - len(found.form.parameters), 1)
    scale = max(mean_absolute * num / freedom, SMALLEST_RESIDUAL)
    gain = float(np.abs(without.residuals).sum() - np.abs(found.residuals).sum())
    if 4 * gain / (np.pi * scale) > CHI_SQUARED_95:
        return []
    mean_without = float(np.abs(without.residuals).mean())
    message = (
        f"the floor {found.form.floor} is not identified, since a law without a floor fits as well "
        f"(mean error {mean_without:.2%} without, {mean_absolute:.2%} with)"
    )
    return [Problem("the floor is not identified", message, "Train further, until the losses flatten, or more seeds")]


def _exponent_problems(found: Fit, names: Sequence[str], error_PP: Values) -> list[Problem]:
    problems = []
    for name in found.form.exponents:
        p = names.index(name)
        value, error = found.parameters[name], float(np.sqrt(error_PP[p, p]))
        if error > MAX_RELATIVE_ERROR * abs(value):
            (variable,) = next(each for each in found.form.coefficients if each.parameter == name).logs_of
            message = f"{name} is {value:.2g} with a standard error of {error:.2g}, not told from 0"
            problems.append(
                Problem(f"{name} is not told from 0", message, f"Widen the range of {variable}, or add seeds")
            )
    return problems


def _rising_problems(found: Fit) -> list[Problem]:
    """Returns a problem for each variable with which the loss rises, since it should fall with all.

    Only one term has N, and only one D or C, so that these are asked of it. Experts are in both terms of the joint law.
    Where they act through one alone, noise lets the other rise a little, so that they are asked of the whole loss.
    """
    problems, names = [], found.form.variables
    logs = {name: np.log(found.observations.values[name]) for name in names}
    if EXPERTS in names and found.form.is_saturated:
        saturation = [found.parameters[name] for name in SATURATION]
        logs[EXPERTS] = np.log(saturated(found.observations.values[EXPERTS], *saturation))
    for name in names:
        if name == EXPERTS:
            steepest = _slope_with_experts(found)
        else:
            terms = [term for term in found.form.terms if any(name in each.logs_of for each in term)]
            steepest = max(float(_slope(term, name, logs, found.parameters).max()) for term in terms)
        if steepest > 0:
            message = (
                f"the loss rises with {name}, as {name}^{steepest:.2g}, and the law is of losses that fall with it"
            )
            remedy = f"Look for what the runs of larger {PLURALS[name]} lack, as a learning rate that suits them"
            problems.append(Problem(f"the loss rises with {name}", message, remedy))
    return problems


def _slope_with_experts(found: Fit) -> float:
    """Returns the mean slope d ln L / d ln E over the runs, as a central difference."""
    values = found.observations.values
    low, high = (
        found.form.loss({**values, EXPERTS: values[EXPERTS] * math.exp(step)}, found.parameters)
        for step in (-SMALL_STEP, SMALL_STEP)
    )
    return float((np.log(high) - np.log(low)).mean() / (2 * SMALL_STEP))


def _slope(term: Term, name: str, logs: Mapping[str, Values], parameters: Mapping[str, float]) -> Values:
    """Returns the slope [n] d ln(term) / d ln(variable `name`) at the runs."""
    slope_n = np.zeros(len(logs[name]))
    for each in (each for each in term if name in each.logs_of):
        others = [logs[other] for other in each.logs_of if other != name]
        slope_n += each.sign * parameters[each.parameter] * (np.prod(others, axis=0) if others else 1.0)
    return slope_n


def _saturation_problems(found: Fit, error_PP: Values) -> list[Problem]:
    if not found.form.is_saturated:
        return []
    # ln E_max = ln E_start + exp(ln ln(E_max / E_start)), and its error follows from those of the two coordinates.
    slope = np.array([1.0, np.log(found.parameters["E_max"] / found.parameters["E_start"])])
    error = float(np.sqrt(slope @ error_PP[-2:, -2:] @ slope))
    if error <= MAX_LOG_ERROR:
        return []
    message = f"E_max is {found.parameters['E_max']:.3g} within a factor of {np.exp(min(error, 50)):.2g}"
    return [Problem("E_max is not identified", message, MORE_EXPERTS)]
