import pytest

from experiments.errors import did_you_mean

PRESETS = ("nano", "micro", "mini", "XL", "3XL")


@pytest.mark.parametrize(("typed", "meant"), [("nanno", "nano"), ("xl", "XL"), ("Micro", "micro"), ("minii", "mini")])
def test_the_closest_name_is_suggested_whatever_its_case(typed, meant):
    assert did_you_mean(typed, PRESETS) == f"Did you mean {meant!r}?"


def test_without_a_close_name_all_are_listed():
    assert did_you_mean("qqqq", PRESETS) == "Choose from: 3XL, XL, micro, mini, nano."
