"""What a parameter can be, and that its draws follow its distribution."""

from __future__ import annotations

import math
import statistics

import pytest
from pydantic import ValidationError

from sweeps.sweep_parameters import KEYS, Parameter

POSITIONS = [(index + 0.5) / 2000 for index in range(2000)]

EXAMPLES = {
    "constant": {"value": 3},
    "categorical": {"values": ["a", "b"]},
    "categorical_w_probabilities": {"values": ["a", "b"], "probabilities": [0.25, 0.75]},
    "int_uniform": {"min": 1, "max": 6},
    "uniform": {"min": 0.0, "max": 1.0},
    "q_uniform": {"min": 0, "max": 10, "q": 0.5},
    "log_uniform": {"min": -3.0, "max": 0.0},
    "q_log_uniform": {"min": 0.0, "max": 5.0, "q": 2},
    "log_uniform_values": {"min": 1e-4, "max": 1e-2},
    "q_log_uniform_values": {"min": 32, "max": 1024, "q": 32},
    "normal": {"mu": 2.0, "sigma": 0.5},
    "q_normal": {"mu": 10.0, "sigma": 3.0, "q": 1},
    "log_normal": {"mu": 0.0, "sigma": 1.0},
    "q_log_normal": {"mu": 2.0, "sigma": 1.0, "q": 1},
}


def drawn(**given):
    parameter = Parameter(**given)
    return [parameter.draw(position) for position in POSITIONS]


def test_there_is_an_example_of_every_distribution():
    assert set(EXAMPLES) == set(KEYS)


@pytest.mark.parametrize("form", KEYS)
def test_a_draw_grows_with_its_position_and_reaches_both_ends(form):
    values = drawn(distribution=form, **EXAMPLES[form])
    assert values == sorted(values)
    given = EXAMPLES[form]
    if "min" in given:
        ends = [math.exp(given[end]) for end in ("min", "max")] if form.endswith("log_uniform") else given.values()
        low, high = list(ends)[:2]
        assert values[0] == pytest.approx(low, abs=given.get("q", 0.02 * (high - low)))
        assert values[-1] == pytest.approx(high, abs=given.get("q", 0.02 * (high - low)))


@pytest.mark.parametrize("form", KEYS)
def test_the_first_and_the_last_position_have_a_value(form):
    parameter = Parameter(distribution=form, **EXAMPLES[form])
    ends = (parameter.draw(0.0), parameter.draw(math.nextafter(1.0, 0.0)))
    assert all(isinstance(value, str) or math.isfinite(value) for value in ends)


def test_the_middle_is_the_median_of_the_distribution():
    assert Parameter(distribution="log_uniform_values", min=1e-4, max=1e-2).draw(0.5) == pytest.approx(1e-3)
    assert Parameter(distribution="uniform", min=2, max=4).draw(0.5) == 3.0
    assert Parameter(distribution="normal", mu=2.0, sigma=9.0).draw(0.5) == 2.0
    assert Parameter(distribution="log_normal", mu=1.0).draw(0.5) == pytest.approx(math.e)
    assert statistics.stdev(drawn(distribution="normal", mu=2.0, sigma=0.5)) == pytest.approx(0.5, rel=0.01)


def test_categories_come_as_often_as_their_probabilities():
    values = drawn(values=["a", "b", "c"], probabilities=[0.1, 0.2, 0.7])
    assert [values.count(name) / len(values) for name in "abc"] == pytest.approx([0.1, 0.2, 0.7])


def test_whole_numbers_are_equally_likely_and_include_both_ends():
    values = drawn(min=1, max=4)
    assert {number: values.count(number) for number in set(values)} == dict.fromkeys((1, 2, 3, 4), 500)


def test_q_gives_its_multiples_as_whole_numbers_where_it_is_one():
    values = drawn(distribution="q_log_uniform_values", min=32, max=1024, q=32)
    assert all(isinstance(value, int) and value % 32 == 0 for value in values)
    assert 0.3 in drawn(distribution="q_uniform", min=0, max=1, q=0.1)


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"value": 1}, "constant"),
        ({"values": [1]}, "categorical"),
        ({"values": [1], "probabilities": [1.0]}, "categorical_w_probabilities"),
        ({"min": 0, "max": 2}, "int_uniform"),
        ({"min": 0, "max": 2.0}, "uniform"),
        ({"min": "1e-4", "max": "1e-2"}, "uniform"),  # PyYAML reads numbers without a dot as text
    ],
)
def test_the_distribution_that_wandb_takes_when_none_is_named(given, form):
    assert Parameter(**given).form == form


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of"),
        ({"value": 1, "values": [1]}, "constant takes value, not value and values"),
        ({"min": 1}, "int_uniform takes min and max, not min"),
        ({"min": 3, "max": 1}, "min 3 is not less than max 1"),
        ({"min": 0, "max": 1, "mu": 0}, "takes min and max"),
        ({"distribution": "uniform", "min": 0, "max": 1, "q": 2}, "uniform takes min and max, not max and min and q"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "whole numbers"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min 0 of log_uniform_values is not positive"),
        ({"values": [1, 2], "probabilities": [0.5]}, "one for each of values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.1]}, "sum to 1"),
        ({"distribution": "normal", "min": 0, "max": 1}, r"normal takes .*mu, sigma"),
        ({"parameters": {"a": {"value": 1}}, "distribution": "normal"}, "normal takes"),
    ],
)
def test_what_does_not_go_together_is_named(given, message):
    with pytest.raises(ValidationError, match=message):
        Parameter(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min": 0, "max": 10**30}, "is not a number between"),
        ({"min": 0, "max": 10**400}, "is not a number between"),
        ({"min": 0.0, "max": math.inf}, "is not a number between"),
        ({"min": math.nan, "max": 1.0}, "is not a number between"),
        ({"min": False, "max": 3}, "False is not a number"),
        ({"min": [0], "max": 3}, "is not a number"),
        ({"distribution": "normal", "mu": math.inf}, "is not a number between"),
        ({"distribution": "normal", "sigma": math.inf}, "is not a number between"),
        ({"distribution": "normal", "sigma": -1}, "greater than or equal to 0"),
        ({"distribution": "log_normal", "sigma": 1e5}, "log_normal takes logarithms, of at most 100"),
        ({"distribution": "log_normal", "mu": -1e5}, "log_normal takes logarithms, of at most 100"),
        ({"distribution": "q_log_normal", "mu": 1e5}, "q_log_normal takes logarithms, of at most 100"),
        ({"distribution": "log_uniform", "min": -1e10, "max": 1e10}, "log_uniform takes logarithms, of at most 100"),
        ({"distribution": "q_log_uniform", "min": 0, "max": 1000}, "q_log_uniform takes logarithms, of at most 100"),
        ({"distribution": "log_uniform_values", "min": 1e-300, "max": 1e300}, "is not a number between"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-300}, "q 1e-300 is too small for values as large"),
        ({"distribution": "q_normal", "q": 1e-300}, "q 1e-300 is too small for values as large"),
        ({"distribution": "q_log_normal", "mu": 90, "q": 1e-9}, "q 1e-09 is too small for values as large"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "greater than 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": math.nan}, "is not a number between"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 2}, "q 2 is more than the range from 0 to 1"),
        ({"values": [1, 2], "probabilities": [math.inf, 0]}, "is not a number between"),
        ({"values": [1, 2], "probabilities": [True, False]}, "True is not a number"),
    ],
)
def test_numbers_without_a_meaning_are_refused(given, message):
    with pytest.raises(ValidationError) as caught:
        Parameter(**given)
    assert message in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("form", sorted({form for form in KEYS if "values" not in KEYS[form][0]} - {"constant"}))
def test_at_the_greatest_ends_every_draw_is_finite(form):
    ends = {"min": 1e-18, "max": 1e18} if form.endswith("values") else {"min": -100, "max": 100}
    given = ends if "min" in KEYS[form][0] else {"mu": 10.0, "sigma": 10.0}
    if form.startswith("q_") and "log" in form:
        given = (
            {**given, "q": 1e4} if form.endswith("values") else {"mu": 3.0} if "mu" in given else {"min": 0, "max": 30}
        )
    parameter = Parameter(distribution=form, **given)
    assert all(math.isfinite(parameter.draw(position)) for position in (0.0, 0.5, math.nextafter(1.0, 0.0)))


def test_a_huge_range_of_whole_numbers_is_drawn_without_being_made():
    parameter = Parameter(min=-(10**18), max=10**18)
    assert parameter.draw(0.0) == -(10**18)
    assert 10**18 - 1000 <= parameter.draw(math.nextafter(1.0, 0.0)) <= 10**18


def test_a_number_in_the_spelling_that_yaml_takes_for_a_text_is_a_number():
    assert Parameter(distribution="log_uniform_values", min="1e-4", max="1e-2").draw(0.0) == pytest.approx(1e-4)
