"""What the runs cannot tell is refused with what is missing; what they can tell is not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from analysis.laws.forms import (
    CHINCHILLA,
    FORMS,
    JOINT,
    POWER_LAW,
    POWER_LAW_WITHOUT_FLOOR,
    ROUTED,
    ROUTED_SATURATED,
    Form,
)
from analysis.laws.identify import condition, design_problems, identified_fit
from analysis.laws.observations import Observations, observe
from analysis.load_records import MissingDataError

CHINCHILLA_TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2000.0, "beta": 0.37}
ROUTED_TRUTH = {"a": -0.08, "b": -0.1, "c": 0.004, "d": 2.5}
WIDE = (1e6, 1e7, 1e8, 1e9)


def at(
    form: Form, truth: dict[str, float], points: Sequence[tuple[float, ...]], noise: float = 0.0, seed: int = 0
) -> Observations:
    """The law at points, in the order of its variables."""
    table = pd.DataFrame(list(points), columns=list(form.variables), dtype=float)
    loss = form.loss({name: table[name].to_numpy() for name in form.variables}, truth)
    spread = np.random.default_rng(seed).normal(0.0, noise, len(table))
    return observe(table.assign(val_loss=loss * np.exp(spread)), {name: name for name in form.variables})


def refused(form: Form, observations: Observations) -> str:
    with pytest.raises(MissingDataError) as error:
        identified_fit(form, observations)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_design_that_tells_everything_is_fitted() -> None:
    found = identified_fit(CHINCHILLA, at(CHINCHILLA, CHINCHILLA_TRUTH, list(itertools.product(WIDE, WIDE)), 0.002))
    assert found.parameters["alpha"] == pytest.approx(0.35, abs=0.02)


def test_two_sizes_are_too_few() -> None:
    message = refused(CHINCHILLA, at(CHINCHILLA, CHINCHILLA_TRUTH, list(itertools.product((1e6, 4e6), WIDE))))
    assert message == (
        "L = E + A / N^alpha + B / D^beta cannot be fitted: it needs at least 3 different sizes (N) and the "
        "runs have 2 (1M, 4M). Add runs of other sizes."
    )


def test_one_number_of_experts_is_too_few() -> None:
    message = refused(ROUTED, at(ROUTED, ROUTED_TRUTH, list(itertools.product(WIDE, (8,)))))
    assert "it needs at least 2 different numbers of experts (experts) and the runs have 1 (8)" in message


def test_a_saturation_needs_four_numbers_of_experts() -> None:
    points = list(itertools.product(WIDE, (1, 8, 64)))
    message = refused(ROUTED_SATURATED, at(ROUTED, ROUTED_TRUTH, points))
    assert "at least 4 different numbers of experts" in message


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_saturation_that_does_not_show_is_refused(noise: float) -> None:
    points = list(itertools.product(WIDE, (1, 4, 16, 64)))
    message = refused(ROUTED_SATURATED, at(ROUTED, ROUTED_TRUTH, points, noise))
    assert "the losses show no saturation up to 64 experts (E_max came out as" in message
    assert message.endswith("Add runs of more experts, or fit the form that is not saturated.")


def test_a_narrow_range_is_refused() -> None:
    points = list(itertools.product(WIDE, (1e6, 1.2e6, 1.5e6)))
    message = refused(CHINCHILLA, at(CHINCHILLA, CHINCHILLA_TRUTH, points))
    assert (
        "D spans a factor of 1.5 only, and at least 2 is needed. Add runs of smaller and larger numbers of images"
        in message
    )


def test_parameters_and_images_that_rise_together_are_refused() -> None:
    points = [(size, 20 * size) for size in np.geomspace(1e6, 1e9, 12)]
    message = refused(CHINCHILLA, at(CHINCHILLA, CHINCHILLA_TRUTH, points))
    assert "N and D rise together (correlation of their logarithms 1.000), so their shares cannot be told" in message
    assert message.endswith("Train one of the sizes at different numbers of images.")


def test_equal_compute_alone_does_not_tell_parameters_from_images() -> None:
    points = [(size, 1e15 / size) for size in np.geomspace(1e6, 1e9, 12)]
    message = refused(CHINCHILLA, at(CHINCHILLA, CHINCHILLA_TRUTH, points))
    assert "N and D go against each other (correlation of their logarithms -1.000)" in message


def test_fewer_configurations_than_parameters_are_refused() -> None:
    points = [(1e6, 1e6), (1e7, 1e8), (1e8, 1e6), (1e8, 1e7), (1e8, 1e7)]
    message = refused(CHINCHILLA, at(CHINCHILLA, CHINCHILLA_TRUTH, points))
    assert "its 5 parameters need at least 6 different combinations of N and D, and the runs have 4" in message


def test_interplay_that_was_never_varied_is_not_told_apart() -> None:
    varied_alone = [*((size, 1) for size in WIDE), *((1e6, experts) for experts in (2, 4, 8))]
    message = refused(ROUTED, at(ROUTED, ROUTED_TRUTH, varied_alone))
    assert "the runs do not tell b and c apart (condition number of the Jacobian" in message
    assert message.endswith("Add runs in which one variable changes alone.")


JOINT_TRUTH = {
    "a": 30.0, "b": 40.0, "c": 1.0, "alpha": -0.2, "beta": -0.2, "gamma": 0.0, "delta": -0.1, "omega": 0.0, "zeta": 0.0,
}  # fmt: skip
RISING: list[tuple[Form, dict[str, float], str]] = [
    (POWER_LAW_WITHOUT_FLOOR, {"A": 0.01, "a": -0.1}, "C"),
    (POWER_LAW, {"E": 0.0, "A": 0.01, "a": -0.1}, "C"),
    (CHINCHILLA, {"E": 0.5, "A": 0.01, "B": 2000.0, "alpha": -0.2, "beta": 0.4}, "N"),
    (CHINCHILLA, {"E": 0.5, "A": 480.0, "B": 0.01, "alpha": 0.35, "beta": -0.2}, "D"),
    (ROUTED, {**ROUTED_TRUTH, "a": 0.08, "c": 0.0}, "N"),
    (ROUTED, {"a": -0.02, "b": -0.4, "c": 0.02, "d": 2.5}, "N"),  # it falls for one expert and rises for 64
    (ROUTED, {**ROUTED_TRUTH, "b": 0.1, "c": 0.0}, "experts"),
    (JOINT, {**JOINT_TRUTH, "a": 0.1, "alpha": 0.2}, "N"),
    (JOINT, {**JOINT_TRUTH, "b": 0.1, "beta": 0.2}, "D"),
]


@pytest.mark.parametrize(("form", "truth", "variable"), RISING)
def test_a_loss_that_rises_is_no_law(form: Form, truth: dict[str, float], variable: str) -> None:
    ranges = {"N": WIDE, "D": WIDE, "C": np.geomspace(1e10, 1e15, 9), "experts": (1, 4, 16, 64)}
    observations = at(form, truth, list(itertools.product(*(ranges[name] for name in form.variables))), 0.002)
    assert f"the loss rises with {variable}, as {variable}^" in refused(form, observations)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_floor_far_below_the_losses_is_not_identified(noise: float) -> None:
    points = [(compute,) for compute in np.geomspace(1e12, 1e15, 20)]
    message = refused(POWER_LAW, at(POWER_LAW, {"E": 0.0, "A": 40.0, "a": 0.1}, points, noise))
    assert "the floor E is not identified, since a law without a floor fits as well (mean error" in message


def test_a_floor_that_the_losses_come_near_is_identified() -> None:
    points = [(compute,) for compute in np.geomspace(1e12, 1e15, 20)]
    found = identified_fit(POWER_LAW, at(POWER_LAW, {"E": 0.1, "A": 4000.0, "a": 0.4}, points, 0.003))
    assert found.parameters["E"] == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_a_variable_whose_effect_the_noise_hides_is_refused(seed: int) -> None:
    flat = CHINCHILLA_TRUTH | {"A": 1e-3}
    message = refused(CHINCHILLA, at(CHINCHILLA, flat, list(itertools.product(WIDE, WIDE)), 0.01, seed))
    assert any(each in message for each in ("alpha is", "do not fall with N", "without a floor fits as well"))


def test_an_exponent_with_a_large_standard_error_is_refused() -> None:
    weak = CHINCHILLA_TRUTH | {"A": 3.0}
    message = refused(CHINCHILLA, at(CHINCHILLA, weak, list(itertools.product(WIDE, WIDE)), 0.01, 1))
    assert "not told from 0. Widen the range of N, or add seeds." in message


def test_all_that_a_design_lacks_is_listed() -> None:
    points = [(1e6, 1e6, 1), (1e6, 1.1e6, 1)]
    problems = design_problems(JOINT, at(JOINT, dict.fromkeys(JOINT.parameters, 0.1), points))
    assert [problem.kind for problem in problems] == [
        "fewer than 3 different N", "fewer than 3 different D", "fewer than 2 different experts",
        "fewer than 10 combinations",
    ]  # fmt: skip


def test_the_condition_of_orthogonal_columns_is_1_and_of_equal_ones_infinite() -> None:
    assert condition(np.array([[2.0, 0.0], [0.0, 5.0]]))[0] == pytest.approx(1.0)
    number, direction = condition(np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))
    assert number > 1e12
    assert direction == pytest.approx([2**-0.5, 2**-0.5, 0.0], abs=1e-9)


def test_every_form_asks_for_more_than_one_value_of_each_of_its_variables() -> None:
    assert all(need >= 2 for form in FORMS.values() for need in form.min_distinct.values())
