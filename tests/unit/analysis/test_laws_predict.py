"""The error of predicting the largest runs is the one a hand computes."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.laws.forms import CHINCHILLA, POWER_LAW, POWER_LAW_WITHOUT_FLOOR
from analysis.laws.observations import Observations, observe
from analysis.laws.predict import largest_tier, leave_largest_out
from analysis.load_records import MissingDataError

TRUTH = {"E": 0.1, "A": 4000.0, "a": 0.4}
SMALLER = np.geomspace(1e11, 1e14, 8)


def study(surprise: float = 1.0, noise: float = 0.0, num_seeds: int = 1) -> Observations:
    """A power law in compute, of which the largest runs, at 1e15 FLOPs, are `surprise` times the law."""
    compute = np.repeat([*SMALLER, 1e15], num_seeds)
    loss = POWER_LAW.loss({"C": compute}, TRUTH) * np.exp(np.random.default_rng(0).normal(0.0, noise, len(compute)))
    measured = np.where(compute == 1e15, surprise, 1.0) * loss
    return observe(pd.DataFrame({"C": compute, "val_loss": measured}), {"C": "C"})


def test_the_error_is_predicted_over_measured_minus_1() -> None:
    found = leave_largest_out(POWER_LAW, study(surprise=1.25), num_resamples=20)
    law = 0.1 + 4000 * 1e15**-0.4
    assert found.errors["measured"].to_list() == pytest.approx([1.25 * law])
    assert found.errors["predicted"].to_list() == pytest.approx([law], rel=1e-3)
    assert found.mean_error.value == pytest.approx(1 / 1.25 - 1, abs=1e-3)
    assert found.mean_absolute_error.value == pytest.approx(0.2, abs=1e-3)
    assert found.compute_factor == pytest.approx(10.0)
    assert found.fit.num_points == 8


def test_without_noise_a_true_law_predicts_its_largest_run() -> None:
    assert leave_largest_out(POWER_LAW, study(), num_resamples=20).mean_absolute_error.value < 1e-4


def test_compute_sets_the_tiers_of_a_law_in_other_variables() -> None:
    truth = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2000.0, "beta": 0.37}
    points = pd.DataFrame(itertools.product(np.geomspace(1e7, 1e9, 4), np.geomspace(1e8, 1e10, 4)), columns=["N", "D"])
    loss = CHINCHILLA.loss({"N": points["N"].to_numpy(), "D": points["D"].to_numpy()}, truth)
    table = points.assign(C=6 * points["N"] * points["D"], val_loss=loss)
    found = leave_largest_out(CHINCHILLA, observe(table, {"N": "N", "D": "D", "C": "C"}), num_resamples=10)
    assert found.errors[["N", "D"]].to_numpy().tolist() == [[1e9, 1e10]]
    assert found.fit.parameters == pytest.approx(truth, rel=1e-3)
    assert found.mean_absolute_error.value < 1e-4


def test_the_interval_covers_no_error_where_the_law_holds_and_not_where_it_breaks() -> None:
    holds = leave_largest_out(POWER_LAW, study(noise=0.005, num_seeds=4), num_resamples=60).mean_error
    breaks = leave_largest_out(POWER_LAW, study(0.8, noise=0.005, num_seeds=4), num_resamples=60).mean_error
    assert holds.low <= 0 <= holds.high
    assert 0 < breaks.low <= 0.25 <= breaks.high


def test_seeds_of_one_configuration_are_averaged_before_they_are_compared() -> None:
    observations = study(num_seeds=2)
    observations.loss[-2:] *= 0.9, 1.1
    found = leave_largest_out(POWER_LAW, observations, num_resamples=20)
    assert found.errors["num_seeds"].to_list() == [2]
    assert found.mean_absolute_error.value == pytest.approx(0.0, abs=1e-4)


def test_a_single_run_is_predicted_less_closely_than_a_mean_of_seeds() -> None:
    observations = study(noise=0.02, num_seeds=6)
    one = observations.take(np.arange(len(observations)) < len(observations) - 5)
    widths = []
    for each in (observations, one):
        error = leave_largest_out(POWER_LAW, each, num_resamples=300).mean_error
        widths.append(error.high - error.low)
    assert widths[1] > 1.3 * widths[0]


def lengths_of_sizes(sizes: tuple[int, ...]) -> Observations:
    """Three lengths of each size, on a law of compute; the largest size is off it at every length."""
    points = pd.DataFrame(itertools.product(sizes, (1, 2, 4)), columns=["size", "length"])
    loss = 40 * (1e12 * points["size"] * points["length"]) ** -0.15
    table = points.assign(C=1e12 * points["size"] * points["length"], trunk=points["size"].map(str))
    off = np.where(points["size"] == max(sizes), 1.25, 1.0)
    return observe(table.assign(val_loss=loss * off), {"C": "C"}, arm="trunk")


def test_the_largest_runs_are_predicted_without_the_shorter_lengths_of_their_trunks() -> None:
    """The law of the others knows nothing of what that training is off, and misses all of it."""
    found = leave_largest_out(POWER_LAW_WITHOUT_FLOOR, lengths_of_sizes((1, 2, 4, 8, 16)), num_resamples=20)
    assert found.fit.num_points == 12
    assert found.compute_factor == pytest.approx(2)
    assert found.mean_error.value == pytest.approx(1 / 1.25 - 1, abs=1e-3)
    assert np.isfinite([found.mean_error.low, found.mean_error.high]).all()


def test_a_prediction_from_no_more_trunks_than_parameters_has_no_interval() -> None:
    found = leave_largest_out(POWER_LAW_WITHOUT_FLOOR, lengths_of_sizes((1, 2, 4)), num_resamples=20)
    assert np.isnan([found.mean_error.low, found.mean_absolute_error.high]).all()
    assert "with a mean error of 20.00% (no interval); mean with sign -20.00% (no interval)." in str(found)


def test_where_all_runs_are_of_the_largest_trunks_none_is_unseen() -> None:
    with pytest.raises(MissingDataError, match="All runs are lengths of the trunks that have the most compute"):
        leave_largest_out(POWER_LAW_WITHOUT_FLOOR, lengths_of_sizes((16,)))


def test_the_headline_says_how_far_and_how_wrong() -> None:
    headline = str(leave_largest_out(POWER_LAW, study(surprise=1.25), num_resamples=20))
    assert headline.startswith("Fitted to 8 runs, it predicts the 1 largest configurations, at 10 times the compute, ")
    assert "with a mean error of 20.00% (20.00% to 20.00%); mean with sign -20.00%" in headline


def test_runs_of_nearly_the_largest_compute_are_of_its_tier() -> None:
    compute = [1e12, 0.95e15, 1e15]
    observations = observe(pd.DataFrame({"C": compute, "val_loss": 0.1}), {"C": "C"})
    assert largest_tier(observations).tolist() == [False, True, True]


def test_one_tier_has_nothing_to_predict_from() -> None:
    observations = observe(pd.DataFrame({"C": [1e15, 1e15], "val_loss": 0.1}), {"C": "C"})
    with pytest.raises(MissingDataError, match=r"All 2 runs are of one compute tier \(1P FLOPs\)\."):
        leave_largest_out(POWER_LAW, observations)


def test_smaller_runs_that_do_not_identify_the_law_are_refused() -> None:
    observations = observe(pd.DataFrame({"C": [1e12, 1e13, 1e14, 1e15], "val_loss": [0.4, 0.3, 0.25, 0.2]}), {"C": "C"})
    with pytest.raises(MissingDataError, match="it needs at least 4 different amounts of compute"):
        leave_largest_out(POWER_LAW, observations)


def test_without_compute_there_is_no_largest() -> None:
    observations = observe(pd.DataFrame({"N": [1.0, 2.0], "val_loss": 0.1}), {"N": "N"})
    with pytest.raises(MissingDataError, match="no column was named for C"):
        largest_tier(observations)
