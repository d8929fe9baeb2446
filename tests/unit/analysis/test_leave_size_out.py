"""A law that holds predicts every size that it has not seen, and a size that it does not hold for is found."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.laws.forms import CHINCHILLA, POWER_LAW_WITHOUT_FLOOR
from analysis.laws.leave_size_out import leave_each_size_out
from analysis.laws.observations import Observations, observe
from analysis.load_records import MissingDataError

TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2000.0, "beta": 0.37}
SIZES = np.geomspace(1e7, 1e9, 5)


def study(odd: float = 1.0, sizes: np.ndarray = SIZES) -> Observations:
    """A law in size and images, of which the losses of the third size are `odd` times the law."""
    points = pd.DataFrame(itertools.product(sizes, np.geomspace(1e8, 1e10, 4), (0, 1)), columns=["N", "D", "seed"])
    loss = CHINCHILLA.loss({"N": points["N"].to_numpy(), "D": points["D"].to_numpy()}, TRUTH)
    is_odd = np.isclose(points["N"], sizes[len(sizes) // 2])
    return observe(points.assign(val_loss=loss * np.where(is_odd, odd, 1.0)), {"N": "N", "D": "D"})


def test_a_law_that_holds_predicts_every_size_left_out() -> None:
    found = leave_each_size_out(CHINCHILLA, study())
    assert found.refused == ()
    assert found.by_size["N"].to_list() == pytest.approx(SIZES.tolist())
    assert found.by_size["num_configurations"].to_list() == [4] * 5
    assert found.errors["num_seeds"].to_list() == [2] * 20
    assert found.by_size["mean_absolute_error"].max() < 1e-3
    assert str(found).startswith("Left out in turn, 5 of 5 sizes are predicted with a mean error of 0.0")


def test_the_size_that_is_off_the_law_has_its_error_by_hand() -> None:
    found = leave_each_size_out(CHINCHILLA, study(odd=1.25))
    row = found.by_size.set_index("N").loc[1e8]
    assert row["mean_error"] == pytest.approx(1 / 1.25 - 1, abs=1e-3)  # the law of the others is the true one
    assert "the worst with -20.00% (N = 100M)" in str(found)
    assert "4 could not be: without N = 10M, L = E" in str(found)  # where the odd size is in the fit, it hides the law


def test_a_law_that_needs_a_size_is_refused_for_it_and_the_others_stay() -> None:
    """Three sizes are as few as the law needs, so leaving any one out is refused, and then the whole is."""
    message = r"The law is not identified without any one size: without N = 10M, L = E .* cannot be fitted"
    with pytest.raises(MissingDataError, match=message):
        leave_each_size_out(CHINCHILLA, study(sizes=np.geomspace(1e7, 1e9, 3)))


def test_one_size_has_nothing_to_leave_out() -> None:
    table = pd.DataFrame({"C": np.geomspace(1e12, 1e15, 6), "N": 1e6, "val_loss": np.geomspace(0.4, 0.2, 6)})
    with pytest.raises(MissingDataError, match=r"All runs have one size \(1M parameters\)"):
        leave_each_size_out(POWER_LAW_WITHOUT_FLOOR, observe(table, {"C": "C", "N": "N"}))


def test_widths_are_left_out_whose_models_differ_in_parameters() -> None:
    """Dense and routed models of a width activate differently many parameters, and are left out together."""
    points = pd.DataFrame(itertools.product(SIZES, (1.0, 1.2), np.geomspace(1e8, 1e10, 4)), columns=["W", "wider", "D"])
    points["N"] = points["W"] * points["wider"]
    loss = CHINCHILLA.loss({"N": points["N"].to_numpy(), "D": points["D"].to_numpy()}, TRUTH)
    observations = observe(points.assign(val_loss=loss), {"N": "N", "D": "D", "W": "W"})
    found = leave_each_size_out(CHINCHILLA, observations, by="W")
    assert found.by_size["W"].to_list() == pytest.approx(SIZES.tolist())
    assert found.by_size["num_configurations"].to_list() == [8] * 5
    assert found.by_size["mean_absolute_error"].max() < 1e-3
    assert "(W = " in str(found)
    assert len(leave_each_size_out(CHINCHILLA, observations).by_size) == 10
