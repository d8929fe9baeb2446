"""Intervals cover the law that made the data, are as wide as the noise asks, and say which resamples failed."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.laws.bootstrap import bootstrap, draw
from analysis.laws.fit import FitError, fit
from analysis.laws.forms import CHINCHILLA, POWER_LAW
from analysis.laws.observations import Observations, observe
from analysis.load import MissingDataError

TRUTH = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
SIZES, DATA = np.geomspace(1e7, 1e9, 5), np.geomspace(1e8, 3e10, 5)


def simulated(noise: float, num_seeds: int = 3, seed: int = 0) -> Observations:
    rows = list(itertools.product(SIZES, DATA, range(num_seeds)))
    table = pd.DataFrame(rows, columns=["N", "D", "seed"])
    spread = np.random.default_rng(seed).normal(0.0, noise, len(table))
    loss = CHINCHILLA.loss({"N": table["N"].to_numpy(), "D": table["D"].to_numpy()}, TRUTH)
    return observe(table.assign(val_loss=loss * np.exp(spread)), {"N": "N", "D": "D"})


def test_95_percent_intervals_cover_the_truth_in_most_of_many_data_sets() -> None:
    num_sets, num_covered = 6, 0
    for seed in range(num_sets):
        found = bootstrap(fit(CHINCHILLA, simulated(0.005, seed=seed)), num_resamples=50)
        for name, interval in found.parameters.items():
            num_covered += interval.low <= TRUTH[name] <= interval.high
        assert found.parameters["alpha"].high - found.parameters["alpha"].low < 0.1
    assert num_covered / (num_sets * len(TRUTH)) >= 0.85


def test_predictions_have_intervals_that_cover_the_truth_and_widen_beyond_the_data() -> None:
    found = bootstrap(fit(CHINCHILLA, simulated(0.005)), num_resamples=100)
    points = {"N": [1e8, 1e11], "D": [3e9, 1e12]}
    inside, beyond = found.predict(points)
    for interval, truth in zip((inside, beyond), CHINCHILLA.loss(points, TRUTH), strict=True):
        assert interval.low <= truth <= interval.high
    assert (beyond.high - beyond.low) / beyond.value > 2 * (inside.high - inside.low) / inside.value


def test_without_noise_the_interval_is_a_point() -> None:
    alpha = bootstrap(fit(CHINCHILLA, simulated(0.0)), num_resamples=10).parameters["alpha"]
    assert (alpha.low, alpha.high) == pytest.approx((TRUTH["alpha"], TRUTH["alpha"]), rel=1e-3)


def test_the_same_seed_draws_the_same_resamples() -> None:
    point = fit(CHINCHILLA, simulated(0.005))
    first, second = (bootstrap(point, num_resamples=5, seed=2).thetas_RP for _ in range(2))
    assert (first == second).all()


def test_over_seeds_every_configuration_keeps_its_number_of_runs() -> None:
    configuration = np.array([0, 0, 0, 1, 1, 2])
    weights = draw(configuration, "seeds", np.random.default_rng(0))
    assert np.bincount(configuration, weights).tolist() == [3, 2, 1]


def test_over_configurations_the_seeds_of_one_come_together() -> None:
    configuration = np.array([0, 0, 1, 1, 2, 2])
    weights = draw(configuration, "configurations", np.random.default_rng(1))
    assert weights[::2].tolist() == weights[1::2].tolist()
    assert weights[::2].sum() == 3


def test_over_runs_as_many_runs_are_drawn_as_there_are() -> None:
    weights = draw(np.zeros(40, dtype=np.intp), "runs", np.random.default_rng(0))
    assert weights.sum() == 40
    assert weights.max() > 1


def test_over_seeds_one_seed_gives_no_spread() -> None:
    with pytest.raises(MissingDataError, match="needs two seeds of every configuration; 25 have one"):
        bootstrap(fit(CHINCHILLA, simulated(0.005, num_seeds=1)), "seeds", num_resamples=5)


def _four_runs() -> Observations:
    """A power law of four runs: a resample that leaves one out does not identify it."""
    compute = np.array([1e12, 1e13, 1e14, 1e15])
    loss = POWER_LAW.loss({"C": compute}, {"E": 0.1, "A": 40.0, "a": 0.2})
    return observe(pd.DataFrame({"C": [*compute] * 6, "val_loss": [*loss] * 6}), {"C": "C"})


def test_resamples_that_do_not_identify_the_law_are_counted_and_said() -> None:
    found = bootstrap(fit(POWER_LAW, _four_runs()), "runs", num_resamples=400)
    assert found.failures == {"fewer than 4 different C": found.num_failed}
    assert len(found.thetas_RP) + found.num_failed == 400
    assert str(found) == (
        f"400 resamples over runs, of which {found.num_failed} gave no law "
        f"({found.num_failed}: fewer than 4 different C)"
    )


def test_where_most_resamples_fail_there_is_no_interval() -> None:
    with pytest.raises(FitError, match="of 50 resamples gave no law"):
        bootstrap(fit(POWER_LAW, _four_runs()), "configurations", num_resamples=50)
