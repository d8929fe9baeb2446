"""A fit finds the law that made the data, whichever it is and whatever column is called N."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from analysis.laws.fit import fit, huber
from analysis.laws.forms import CHINCHILLA, FORMS, POWER_LAW, ROUTED
from analysis.laws.observations import observe
from analysis.load_records import MissingDataError

BESIROGLU = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""The refit of Chinchilla in 2404.10102."""

ROUTED_TRUTH = {"a": -0.082, "b": -0.108, "c": 0.004, "d": 2.5}
JOINT_TRUTH = {
    "c": 1.36, "a": 35.9, "delta": 0.23, "alpha": -0.19, "gamma": -0.01,
    "b": 36.0, "omega": -0.55, "beta": -0.18, "zeta": 0.026,
}  # fmt: skip
TRUTHS: dict[str, dict[str, float]] = {
    "power-law": {"E": 0.12, "A": 40.0, "a": 0.21},
    "power-law-without-floor": {"A": 40.0, "a": 0.21},
    "chinchilla": BESIROGLU,
    "routed": ROUTED_TRUTH,
    "routed-saturated": ROUTED_TRUTH | {"E_start": 1.8, "E_max": 300.0},
    "joint": JOINT_TRUTH,
    "joint-saturated": JOINT_TRUTH | {"E_start": 2.1, "E_max": 290.0},
}


def simulated(name: str, truth: Mapping[str, float], noise: float = 0.0, num_seeds: int = 1) -> pd.DataFrame:
    """Losses of the law over a grid of N, D and experts, with relative noise."""
    sizes, data, experts = (1e6, 4e6, 1.6e7, 6.4e7), (1e6, 8e6, 6.4e7), (1, 4, 16, 64)
    rows = list(itertools.product(sizes, data, experts, range(num_seeds)))
    table = pd.DataFrame(rows, columns=["N", "D", "experts", "seed"]).assign(C=lambda t: 6 * t["N"] * t["D"])
    values = {variable: table[variable].to_numpy() for variable in FORMS[name].variables}
    spread = np.random.default_rng(5).normal(0.0, noise, len(table))
    return table.assign(val_loss=FORMS[name].loss(values, truth) * np.exp(spread))


@pytest.mark.parametrize("name", list(FORMS))
def test_without_noise_the_law_is_recovered(name: str) -> None:
    form = FORMS[name]
    found = fit(form, observe(simulated(name, TRUTHS[name]), {variable: variable for variable in form.variables}))
    assert found.parameters == pytest.approx(TRUTHS[name], rel=1e-3)
    assert np.abs(found.residuals).max() < 1e-6


def test_the_refit_of_chinchilla_is_recovered_from_noise_of_one_percent() -> None:
    observations = observe(simulated("chinchilla", BESIROGLU, 0.01, 20), {"N": "N", "D": "D"})
    found = fit(CHINCHILLA, observations).parameters
    assert found["E"] == pytest.approx(BESIROGLU["E"], abs=0.03)
    assert found["alpha"] == pytest.approx(BESIROGLU["alpha"], abs=0.015)
    assert found["beta"] == pytest.approx(BESIROGLU["beta"], abs=0.015)


def test_no_other_law_nearby_has_a_lower_objective() -> None:
    observations = observe(simulated("chinchilla", BESIROGLU, 0.01, 2), {"N": "N", "D": "D"})
    found = fit(CHINCHILLA, observations)
    assert found.objective == pytest.approx(huber(found.residuals, 1e-3).sum(), rel=1e-9)
    random = np.random.default_rng(0)
    for _ in range(200):
        other = {name: value * np.exp(random.normal(0, 1e-4)) for name, value in found.parameters.items()}
        residuals = np.log(observations.loss / CHINCHILLA.loss(observations.values, other))
        assert huber(residuals, 1e-3).sum() > found.objective


def test_a_single_bad_run_moves_little() -> None:
    table = simulated("power-law", TRUTHS["power-law"])
    table.loc[7, "val_loss"] *= 2
    assert fit(POWER_LAW, observe(table, {"C": "C"})).parameters == pytest.approx(TRUTHS["power-law"], rel=1e-2)


def test_two_fits_of_the_same_runs_are_equal_to_the_last_bit() -> None:
    observations = observe(simulated("chinchilla", BESIROGLU, 0.01), {"N": "N", "D": "D"})
    assert fit(CHINCHILLA, observations).parameters == fit(CHINCHILLA, observations).parameters


def test_a_fit_predicts_what_its_law_says() -> None:
    found = fit(CHINCHILLA, observe(simulated("chinchilla", BESIROGLU), {"N": "N", "D": "D"}))
    assert found.num_points == len(found.residuals) == 48
    assert found.predict({"N": 1e9, "D": [1e10, 1e11]}) == pytest.approx(
        CHINCHILLA.loss({"N": 1e9, "D": [1e10, 1e11]}, BESIROGLU), rel=1e-4
    )


def test_N_is_the_column_that_is_named() -> None:
    table = simulated("routed", ROUTED_TRUTH).assign(params_total=lambda t: 3 * t["N"])
    active = fit(ROUTED, observe(table, {"N": "N", "experts": "experts"})).parameters
    total = fit(ROUTED, observe(table, {"N": "params_total", "experts": "experts"})).parameters
    assert total["a"] == pytest.approx(active["a"])
    assert total["d"] == pytest.approx(active["d"] - active["a"] * np.log(3))
    assert total["b"] == pytest.approx(active["b"] - active["c"] * np.log(3))


def test_a_dense_run_counts_as_one_expert() -> None:
    table = pd.DataFrame({"N": [1, 2, 3], "routing.num_experts": [0, None, 8], "val_loss": [0.3, 0.2, 0.1]})
    observations = observe(table, {"N": "N", "experts": "routing.num_experts"})
    assert observations.values["experts"].tolist() == [1.0, 1.0, 8.0]


def test_a_run_without_a_number_is_left_out_and_listed() -> None:
    table = pd.DataFrame({"run": ["a", "b", "c"], "N": [1.0, 2.0, 0.0], "val_loss": [0.2, np.nan, 0.1]})
    observations = observe(table, {"N": "N"})
    assert observations.run == ("a",)
    assert [str(each) for each in observations.left_out] == [
        "b: no positive number for loss",
        "c: no positive number for N",
    ]


def test_a_column_that_does_not_exist_is_named() -> None:
    with pytest.raises(MissingDataError, match=r"no column params_head, which was named for N\."):
        observe(pd.DataFrame({"val_loss": [0.1]}), {"N": "params_head"})


def test_a_table_without_any_loss_is_refused() -> None:
    with pytest.raises(MissingDataError, match=r"None of the 1 runs has a loss and all of N\."):
        observe(pd.DataFrame({"N": [1.0], "val_loss": [np.nan]}), {"N": "N"})


def test_runs_of_equal_values_and_arm_are_one_configuration() -> None:
    table = pd.DataFrame({"N": [1.0, 2.0, 1.0, 1.0], "val_loss": 0.1, "arm": ["x", "x", "x", "y"]})
    configuration = observe(table, {"N": "N"}, arm="arm").configuration
    assert configuration[0] == configuration[2]
    assert len(set(configuration)) == 3
