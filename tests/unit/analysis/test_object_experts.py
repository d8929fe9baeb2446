"""Experts on objects are read of every run, and the claims about them have their values by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.load_records import load_records
from analysis.object_experts import object_claims, object_experts
from analysis.run_table import run_table


def test_every_routed_run_has_a_row_for_each_layer_and_time(
    write_arms: Callable[..., Path], map_routing: Callable[..., None]
) -> None:
    folder = write_arms(seeds=(0, 1))
    map_routing(folder, layers=(1, 3))
    table = run_table(load_records([folder]))
    found = object_experts(table)
    assert set(found["run"]) == set(table.loc[table["routing.name"] != "dense", "run"])
    assert len(found) == 4 * 2 * 3
    assert found.groupby(["run", "layer"]).size().unique().tolist() == [3]
    assert (found["object_experts"] == 3 - found["time"]).all()
    assert (found["background_experts"] == 1.5).all()


def test_runs_that_were_not_measured_have_no_row(write_arms: Callable[..., Path]) -> None:
    found = object_experts(run_table(load_records([write_arms(seeds=(0,))])))
    assert found.empty
    assert "object_experts" in found


def rows(objects: Callable[[int, float, int], float], layers: tuple[int, ...] = (1, 3)) -> pd.DataFrame:
    """Experts on objects by layer, time and seed, beside one expert on background."""
    return pd.DataFrame(
        {
            "layer": layer, "time": time, "seed": seed, "object_experts": objects(layer, time, seed),
            "background_experts": 1.0,
        }
        for layer in layers for time in (0.05, 0.45, 0.55, 0.95) for seed in (0, 1, 2)
    )  # fmt: skip


def test_claims_have_their_values_by_hand() -> None:
    found = object_claims(rows(lambda layer, time, seed: (2.0 if time < 0.5 else 1.0) * (3.0 if layer == 3 else 1.0)))
    assert math.exp(found["more"].mean) == pytest.approx((2 + 1) / 2 * (3 + 1) / 2)
    assert math.exp(found["late times"].mean) == pytest.approx(2)
    assert math.exp(found["late layers"].mean) == pytest.approx(3)
    assert [gap.num_values for gap in found.values()] == [3, 3, 3]


def test_equal_tokens_are_no_claim_and_fewer_experts_on_objects_contradict_it() -> None:
    even = object_claims(rows(lambda layer, time, seed: 1.0))
    assert not any(gap.is_above_zero or gap.is_below_zero for gap in even.values())
    fewer = object_claims(rows(lambda layer, time, seed: 0.8 + 0.01 * seed))
    assert fewer["more"].is_below_zero


def test_one_routed_layer_has_no_late_layers_and_a_run_without_experts_on_objects_no_ratio() -> None:
    assert set(object_claims(rows(lambda layer, time, seed: 1.0, layers=(1,)))) == {"more", "late times"}
    assert object_claims(rows(lambda layer, time, seed: float(seed > 0)))["more"].num_values == 2
