"""Intervals cover the law that made the data, are as wide as the noise asks, and say which resamples failed."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.laws.bootstrap import Bootstrap, bootstrap, draw
from analysis.laws.fit import FitError, fit, search
from analysis.laws.forms import CHINCHILLA, POWER_LAW, POWER_LAW_WITHOUT_FLOOR
from analysis.laws.observations import Observations, observe
from analysis.laws.predict import leave_largest_out

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
    found = bootstrap(fit(CHINCHILLA, simulated(0.005, seed=1)), num_resamples=100)
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


def test_the_seeds_of_one_configuration_come_together() -> None:
    configuration = np.array([0, 0, 1, 1, 2, 2])
    weights = draw(configuration, np.random.default_rng(1))
    assert weights[::2].tolist() == weights[1::2].tolist()
    assert weights[::2].sum() == pytest.approx(3)
    assert len(set(weights)) == 3


def test_more_seeds_of_the_same_configurations_do_not_narrow_an_interval() -> None:
    """What a law misses of a configuration is in all its seeds, which repeat it and say nothing new."""
    widths = []
    for num_seeds in (1, 8):
        table = off_the_law(num_configurations=12, num_seeds=num_seeds, between_seeds=0.0, seed=4)
        exponent = bootstrap(fit(POWER_LAW_WITHOUT_FLOOR, table), num_resamples=200).parameters["a"]
        widths.append(exponent.high - exponent.low)
    assert widths[1] == pytest.approx(widths[0], rel=1e-3)


def lengths_of(num_trunks: int, num_lengths: int = 3) -> pd.DataFrame:
    """Lengths so alike that each repeats what its trunk is off the law, and nothing else, as seeds do."""
    observations = off_the_law(num_trunks, num_seeds=1, between_seeds=0.0, seed=4)
    longer = 1 + 1e-6 * np.arange(num_lengths)
    compute, loss = (np.outer(each, longer**power).ravel() for each, power in (
        (observations.values["C"], 1.0), (observations.loss, -0.15)
    ))  # fmt: skip
    trunk = np.repeat(np.arange(num_trunks).astype(str).astype(object), num_lengths)
    return pd.DataFrame({"C": compute, "val_loss": loss, "trunk": trunk})


def test_more_lengths_of_the_same_trunks_do_not_narrow_an_interval() -> None:
    """They are one training up to their cooldowns, and what that deviates says nothing new at the next length."""
    lengths, widths = lengths_of(num_trunks=12), []
    for table in (lengths_of(num_trunks=12, num_lengths=1), lengths, lengths.drop(columns="trunk")):
        found = bootstrap(fit(POWER_LAW_WITHOUT_FLOOR, observe(table, {"C": "C"})), num_resamples=200)
        widths.append(found.parameters["a"].high - found.parameters["a"].low)
        what = "trunks of several lengths" if table is lengths else "configurations"
        assert str(found) == f"200 resamples over {what}"
    assert widths[1] == pytest.approx(widths[0], rel=1e-2)
    assert widths[2] < 0.8 * widths[0]


def test_a_law_with_no_more_trunks_than_parameters_has_no_interval() -> None:
    found = bootstrap(fit(POWER_LAW_WITHOUT_FLOOR, observe(lengths_of(2, num_lengths=4), {"C": "C"})))
    assert not found.has_intervals
    assert str(found) == "no interval: 2 trunks of several lengths for 2 parameters"
    assert str(found.parameters["a"]) == f"{found.fit.parameters['a']:.4g} (no interval)"
    (at,) = found.predict({"C": 1e12})
    assert at.value == pytest.approx(float(found.fit.predict({"C": 1e12})))
    assert np.isnan([at.low, at.high]).all()


def off_the_law(num_configurations: int, num_seeds: int, between_seeds: float, seed: int) -> Observations:
    """L = 40 C^-0.15, each configuration 3% off it in all its seeds, and the largest at ten times the compute."""
    random = np.random.default_rng(seed)
    compute = np.append(np.geomspace(1e11, 1e14, num_configurations - 1), 1e15)
    loss = 40 * compute**-0.15 * np.exp(random.normal(0, 0.03, num_configurations))
    losses = np.repeat(loss, num_seeds) * np.exp(random.normal(0, between_seeds, num_configurations * num_seeds))
    return observe(pd.DataFrame({"C": np.repeat(compute, num_seeds), "val_loss": losses}), {"C": "C"})


def test_a_linear_laws_interval_is_students_for_its_degrees_of_freedom() -> None:
    """Resamples of a linear law spread by sqrt(nu / C) too little, and Student's t allows for the unknown spread."""
    observations = off_the_law(num_configurations=6, num_seeds=1, between_seeds=0.0, seed=0)
    point = fit(POWER_LAW_WITHOUT_FLOOR, observations)
    error, num, freedom = 0.01, 6, 4
    draws = np.random.default_rng(1).normal(0, error * np.sqrt(freedom / num), (40_000, 2))
    found = Bootstrap(point, point.theta_P + draws, {}).parameters["a"]
    half = stats.t.ppf(0.975, freedom) * error
    assert found.high - found.value == pytest.approx(half, rel=0.03)
    assert found.value - found.low == pytest.approx(half, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("num_configurations", [5, 11])
def test_intervals_cover_where_seeds_share_what_their_configuration_is_off_the_law(num_configurations: int) -> None:
    """The table of docs/statistics.md: without the widening the exponent is covered too rarely.

    Resampled runs covered it in 29 of 40 studies of 11 configurations, and no error of prediction in 24.
    """
    num_sets, covered, unwidened, holds = 100, 0, 0, 0
    for seed in range(num_sets):
        observations = off_the_law(num_configurations, num_seeds=3, between_seeds=0.01, seed=seed)
        found = bootstrap(fit(POWER_LAW_WITHOUT_FLOOR, observations), num_resamples=60)
        exponent, narrow = found.parameters["a"], np.percentile([law["a"] for law in found.laws], [2.5, 97.5])
        covered += exponent.low <= 0.15 <= exponent.high
        unwidened += narrow[0] <= 0.15 <= narrow[1]
        if seed < 40:
            error = leave_largest_out(POWER_LAW_WITHOUT_FLOOR, observations, num_resamples=60).mean_error
            holds += error.low <= 0 <= error.high
    assert covered >= 88
    assert covered > unwidened
    assert holds >= 35


def _four_configurations(noise: float) -> Observations:
    """As few as the law needs: a resample without one of them would not identify it."""
    compute = np.repeat(np.geomspace(1e12, 1e15, 4), 3)
    loss = POWER_LAW.loss({"C": compute}, {"E": 0.1, "A": 40.0, "a": 0.2})
    spread = np.repeat(np.random.default_rng(0).normal(0.0, noise, 4), 3)
    return observe(pd.DataFrame({"C": compute, "val_loss": loss * np.exp(spread)}), {"C": "C"})


def test_a_design_of_few_configurations_keeps_all_of_them_in_every_resample() -> None:
    found = bootstrap(fit(POWER_LAW_WITHOUT_FLOOR, _four_configurations(0.01)), num_resamples=50)
    assert (len(found.thetas_RP), found.num_failed) == (50, 0)
    assert str(found) == "50 resamples over configurations"
    assert found.parameters["a"].low < found.parameters["a"].value < found.parameters["a"].high


def test_resamples_whose_search_does_not_settle_are_counted() -> None:
    point = fit(POWER_LAW_WITHOUT_FLOOR, _four_configurations(0.01))
    some = Bootstrap(point, np.array([point.theta_P]), {"the search did not settle": 3})
    assert str(some) == "4 resamples over configurations, of which 3 gave no law (3: the search did not settle)"


def test_resamples_most_of_which_give_no_law_are_refused() -> None:
    """Losses that neither fall with N nor with D: what separates the terms are single configurations."""
    points = pd.DataFrame(itertools.product((1e6, 1e7, 1e8), (1e6, 1e7, 1e8)), columns=["N", "D"])
    flat = points.assign(val_loss=np.exp(np.random.default_rng(6).normal(0.0, 0.003, len(points))))
    point = search(CHINCHILLA, observe(flat, {"N": "N", "D": "D"}))
    message = r"of 10 resamples gave no law \(the search did not settle\)\. The fit hangs on single configurations"
    with pytest.raises(FitError, match=message):
        bootstrap(point, num_resamples=10)
