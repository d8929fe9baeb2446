"""The joint law's best size is the one that calculus gives, and methods that disagree say by how much."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.isoflop_parametric import (
    SizesOfBudget,
    disagreement_text,
    disagreements,
    parametric_minima,
    parametric_or_refusal,
)
from analysis.laws.forms import CHINCHILLA

TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2000.0, "beta": 0.37}
BUDGETS = (1e18, 4e18, 1.6e19)


def best_size(flops: float) -> float:
    """The N that minimizes the law where D = C / (6 N): Hoffmann et al. 2022, eq. 4."""
    alpha, beta = TRUTH["alpha"], TRUTH["beta"]
    factor = (alpha * TRUTH["A"] / (beta * TRUTH["B"])) ** (1 / (alpha + beta))
    return float(factor * (flops / 6) ** (beta / (alpha + beta)))


def study(off: float, seed: int) -> tuple[pd.DataFrame, list[SizesOfBudget]]:
    """Seven sizes about the best one at each budget; every configuration is `off` the law, in both of its seeds."""
    random, rows, budgets = np.random.default_rng(seed), [], []
    for flops in BUDGETS:
        sizes = best_size(flops) * np.geomspace(0.1, 8, 7)
        budgets.append(SizesOfBudget(flops, np.log(sizes), np.log(flops / (6 * sizes))))
        for size in sizes:
            images = flops / (6 * size)
            loss = float(CHINCHILLA.loss({"N": size, "D": images}, TRUTH)) * np.exp(random.normal(0, off))
            rows += [{"params_active": size, "images_seen": images, "val_loss": loss}] * 2
    return pd.DataFrame(rows), budgets


def test_the_best_size_of_each_budget_is_that_of_calculus() -> None:
    runs, budgets = study(off=0.0, seed=0)
    found = parametric_minima(runs, "params_active", budgets, num_resamples=5)
    assert [row["params"] for row in found] == pytest.approx([best_size(flops) for flops in BUDGETS], rel=0.02)
    spent = [6 * row["params"] * row["images"] for row in found]
    assert spent == pytest.approx(BUDGETS, rel=1e-6)
    assert not any(row["is_edge"] for row in found)


def test_the_interval_contains_the_truth_where_configurations_are_off_the_law() -> None:
    runs, budgets = study(off=0.003, seed=1)
    for row in parametric_minima(runs, "params_active", budgets, num_resamples=40):
        assert row["params_low"] < row["params"] < row["params_high"]
        assert row["params_low"] <= best_size(row["flops"]) <= row["params_high"]


def test_runs_that_do_not_identify_the_law_have_no_minimum_and_a_reason() -> None:
    runs, budgets = study(off=0.0, seed=0)
    one_size = runs[runs["params_active"] == runs["params_active"].min()]
    rows, refusal = parametric_or_refusal(one_size, "params_active", budgets)
    assert rows == []
    assert refusal.startswith("no parametric minimum: L = E + A / N^alpha + B / D^beta cannot be fitted: it needs")
    assert refusal.endswith(".")


def minima(**sizes: tuple[float, bool]) -> pd.DataFrame:
    about = {"study": "", "arm": "Dense", "flops": 1e12}
    return pd.DataFrame(
        [{**about, "method": method, "params": size, "is_edge": edge} for method, (size, edge) in sizes.items()]
    )


def test_the_disagreement_is_the_largest_over_the_smallest_best_size_away_from_edges() -> None:
    found = disagreements(minima(quadratic=(4e5, False), akima=(5e5, False), parametric=(9e5, True)))
    assert found[["methods", "factor"]].to_numpy().tolist() == [["quadratic, akima", 1.25]]
    assert disagreements(minima(quadratic=(4e5, False), akima=(5e5, True))).empty


def test_the_disagreement_is_said_with_the_exponents() -> None:
    found = disagreements(minima(quadratic=(4e5, False), akima=(5e5, False)))
    rows = itertools.product((("quadratic", 0.4), ("akima", 0.46)), ("params", "images"))
    laws = pd.DataFrame([{"method": name, "exponent": at, "quantity": quantity} for (name, at), quantity in rows])
    assert disagreement_text(found, laws) == (
        "N* by quadratic, akima differs by a factor of 1.25 at most over 1 budgets; exponents quadratic 0.40, "
        "akima 0.46, 0.06 apart."
    )
