"""The equations at values computed by hand, and that what is fitted is what is printed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.laws.forms import FORMS, SATURATION, Form, chinchilla, joint, power_law, routed, saturated
from analysis.laws.log_model import LogModel

VALUES = {
    "N": np.array([1e6, 1e7, 3e8]),
    "D": np.array([2e7, 1e6, 5e8]),
    "C": np.array([1e12, 1e14, 1e18]),
    "experts": np.array([1.0, 8.0, 64.0]),
}


def test_a_power_law_at_a_hand_computed_point() -> None:
    assert power_law(1e4, E=0.5, A=3.0, a=0.25) == pytest.approx(0.5 + 3 / 10)


def test_chinchilla_at_a_hand_computed_point() -> None:
    assert chinchilla(1e4, 1e6, E=1.5, A=20.0, B=300.0, alpha=0.5, beta=0.5) == pytest.approx(1.5 + 0.2 + 0.3)


def test_the_routed_law_of_one_expert_is_a_power_law_in_parameters() -> None:
    loss = routed([1e6, 1e8], 1, a=-0.1, b=-0.2, c=0.01, d=2.0)
    assert loss[1] / loss[0] == pytest.approx(100**-0.1)


def test_the_routed_law_at_a_hand_computed_point() -> None:
    log_loss = -0.1 * math.log(1e6) - 0.2 * math.log(8) + 0.01 * math.log(1e6) * math.log(8) + 2.0
    assert routed(1e6, 8, a=-0.1, b=-0.2, c=0.01, d=2.0) == pytest.approx(math.exp(log_loss))


def test_the_joint_law_of_one_expert_is_that_of_chinchilla() -> None:
    interplay = {"delta": 0.3, "gamma": -0.01, "omega": -0.4, "zeta": 0.02}
    dense = joint(1e6, 1e7, 1, a=30.0, alpha=-0.3, b=50.0, beta=-0.4, c=1.2, **interplay)
    assert dense == pytest.approx(chinchilla(1e6, 1e7, E=1.2, A=30.0, B=50.0, alpha=0.3, beta=0.4))


def test_the_joint_law_at_a_hand_computed_point() -> None:
    e = math.log(16)
    of_size = 30 * 16**0.3 * 1e6 ** (-0.3 - 0.01 * e)
    of_data = 50 * 16**-0.4 * 1e7 ** (-0.4 + 0.02 * e)
    interplay = {"delta": 0.3, "gamma": -0.01, "omega": -0.4, "zeta": 0.02}
    assert joint(1e6, 1e7, 16, a=30.0, alpha=-0.3, b=50.0, beta=-0.4, c=1.2, **interplay) == pytest.approx(
        of_size + of_data + 1.2
    )


def test_the_saturated_number_of_experts_goes_from_E_start_to_E_max() -> None:
    assert saturated([1, 1e12], 2.0, 300.0) == pytest.approx([2.0, 300.0])
    assert saturated([1, 8, 64]) == pytest.approx([1, 8, 64])


def _theta(form: Form) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Coordinates at which all terms count."""
    theta = np.random.default_rng(3).uniform(0.05, 0.2, len(form.parameters))
    if form.is_saturated:
        theta[-2:] = 0.6, 1.5
    return theta


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_what_is_fitted_is_what_is_printed(form: Form) -> None:
    model, theta = LogModel(form, VALUES), _theta(form)
    parameters = model.unpack(theta)
    assert tuple(parameters) == form.parameters
    assert form.is_saturated == (set(SATURATION) <= set(parameters))
    assert np.exp(model.log_loss(theta)) == pytest.approx(form.loss(VALUES, parameters), rel=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_the_gradient_is_that_of_finite_differences(form: Form) -> None:
    model, theta = LogModel(form, VALUES), _theta(form)
    gradient = model.log_loss_and_gradient(theta)[1]
    for p in range(len(theta)):
        step = np.zeros(len(theta))
        step[p] = 1e-6
        slope = (model.log_loss(theta + step) - model.log_loss(theta - step)) / 2e-6
        assert gradient[:, p] == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", ["power-law", "chinchilla", "joint"])
def test_without_its_floor_a_law_is_the_same_law_minus_the_floor(name: str) -> None:
    form = FORMS[name]
    without = form.without_floor()
    parameters = LogModel(form, VALUES).unpack(_theta(form))
    rest = {key: value for key, value in parameters.items() if key != form.floor}
    assert without.parameters == tuple(rest)
    assert without.loss(VALUES, rest) == pytest.approx(form.loss(VALUES, parameters) - parameters[form.floor or ""])
