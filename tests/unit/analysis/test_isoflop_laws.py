"""The laws of iso-FLOP minima: intervals that cover, and laws that mean nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.isoflop_laws import laws_of_minima
from analysis.isoflop_minima import quadratic_minimum
from analysis.isoflop_scatter import Profile, half_width, scatter

EXPONENT = 0.5
NUM_SETS = 300


def minima_of(log_flops: np.ndarray, log_params: np.ndarray, **given: object) -> pd.DataFrame:
    """Minima of one arm; the images are those of a model that costs 6 N FLOPs an image."""
    about = {"study": "", "arm": "Expert choice", "method": "quadratic", "is_edge": False, **given}
    flops, params = np.exp(log_flops), np.exp(log_params)
    return pd.DataFrame({"flops": flops, "params": params, "images": flops / (6 * params), "num_seeds": 3}).assign(
        **about
    )


def simulated(rng: np.random.Generator, num_seeds: int) -> pd.DataFrame:
    """Four budgets of five sizes each: parabolas whose configurations are off by 1%, which all of their seeds share."""
    log_flops = np.log(1e12) + np.log(2.0) * np.arange(4)
    profiles = []
    for log_budget in log_flops:
        best = EXPONENT * log_budget
        sizes = best + np.linspace(-1.2, 1.2, 5)
        shared = rng.normal(0, 0.01, len(sizes))
        seeds = rng.normal(0, 0.002, (num_seeds, len(sizes))).mean(axis=0)
        losses = (0.2 + 0.02 * (sizes - best) ** 2) * np.exp(shared + seeds)
        profiles.append(Profile(sizes.tolist(), losses.tolist()))
    minima = np.array([quadratic_minimum(*profile).log_params for profile in profiles])
    spread = scatter(profiles)
    assert spread is not None
    halves = np.array([half_width(profile, spread) for profile in profiles])
    ends = {"params_low": np.exp(minima - halves), "params_high": np.exp(minima + halves)}
    return minima_of(log_flops, minima, **ends)


def laws_of_many(num_seeds: int, seed: int) -> pd.DataFrame:
    """The laws of the best size in `NUM_SETS` simulated data sets, as those of so many arms."""
    rng = np.random.default_rng(seed)
    sets = [simulated(rng, num_seeds).assign(arm=str(number)) for number in range(NUM_SETS)]
    laws, refused = laws_of_minima(pd.concat(sets))
    assert refused == []
    return laws[laws["quantity"] == "params"]


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_interval_of_an_exponent_covers_where_seeds_share_the_error_of_their_configuration(num_seeds: int) -> None:
    laws = laws_of_many(num_seeds, seed=0)
    assert len(laws) == NUM_SETS
    assert 0.92 <= np.mean((laws["exponent_low"] <= EXPONENT) & (laws["exponent_high"] >= EXPONENT)) <= 0.98


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_interval_over_cells_covers_too_and_is_narrower(num_seeds: int) -> None:
    laws = laws_of_many(num_seeds, seed=0)
    covers = (laws["exponent_cells_low"] <= EXPONENT) & (laws["exponent_cells_high"] >= EXPONENT)
    assert 0.92 <= covers.mean() <= 0.98
    widths = [(laws[f"{name}_high"] - laws[f"{name}_low"]).median() for name in ("exponent", "exponent_cells")]
    assert widths[1] < 0.8 * widths[0]


def test_two_budgets_have_an_interval_over_cells_by_hand() -> None:
    """The exponent is the difference of two minima over that of two budgets, so half-widths add as a hypotenuse."""
    log_params, halves = np.array([13.0, 13.4]), np.array([0.3, 0.4])
    ends = {"params_low": np.exp(log_params - halves), "params_high": np.exp(log_params + halves)}
    laws, _ = laws_of_minima(minima_of(np.array([27.0, 29.0]), log_params, **ends))
    of_size = laws[laws["quantity"] == "params"].iloc[0]
    assert of_size["exponent_cells_low"] == pytest.approx(0.2 - 0.5 / 2)
    assert of_size["exponent_cells_high"] == pytest.approx(0.2 + 0.5 / 2)
    assert np.isnan(of_size["exponent_low"])


def test_the_joint_laws_minima_have_no_interval_as_they_share_their_errors() -> None:
    log_flops = np.array([27.0, 28.0, 29.0])
    laws, _ = laws_of_minima(minima_of(log_flops, np.array([13.0, 13.4, 13.7]), method="parametric"))
    assert laws[["exponent_low", "exponent_cells_low"]].isna().all(axis=None)
    assert laws["exponent"].notna().all()


def test_more_seeds_of_the_same_configurations_do_not_narrow_the_interval() -> None:
    few, many = (laws_of_many(num_seeds, seed=1) for num_seeds in (2, 16))
    widths = [np.median(laws["exponent_high"] - laws["exponent_low"]) for laws in (few, many)]
    assert widths[1] > 0.8 * widths[0]


def test_two_budgets_leave_no_scatter_and_no_interval() -> None:
    laws, refused = laws_of_minima(minima_of(np.array([27.0, 28.0]), np.array([13.0, 13.4])))
    assert laws["exponent"].to_list() == pytest.approx([0.4, 0.6])
    assert laws[["exponent_low", "exponent_high"]].isna().all(axis=None)
    assert refused == []


@pytest.mark.parametrize(
    ("slope", "what"), [(-0.2, "best size N* falls with compute (exponent -0.20"), (1.3, "best training D* falls")]
)
def test_a_law_that_falls_with_compute_is_refused_by_name(slope: float, what: str) -> None:
    log_flops = np.array([27.0, 28.0, 29.0])
    laws, refused = laws_of_minima(minima_of(log_flops, 13 + slope * (log_flops - 27), study="images=6400"))
    assert len(laws) == 1
    assert len(refused) == 1
    assert refused[0].startswith(f"Expert choice, images=6400: the {what}")
    assert refused[0].endswith("which no training does; the law is refused.")


def test_minima_at_an_edge_are_not_used() -> None:
    laws, refused = laws_of_minima(minima_of(np.array([27.0, 28.0]), np.array([13.0, 13.4]), is_edge=[True, False]))
    assert laws.empty
    assert refused == []
