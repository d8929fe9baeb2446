"""Exponents of growth: known powers are found, and every measurement works at its two smallest sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.benchmarks.growth import exponent, growth_axes, measure_growth
from experiments.errors import EcditError

AXES = growth_axes()


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_known_power_is_found_behind_constant_costs(power):
    sizes = [10, 100, 1000, 10_000]
    assert exponent(sizes, [0.5 + 1e-2 * size**power for size in sizes]) == pytest.approx(power, abs=0.1)


@pytest.mark.parametrize(("seconds", "held", "is_met"), [(1, 1, True), (2, 1, False), (1, 2, False)])
def test_what_grows_faster_than_its_work_is_said(seconds, held, is_met):
    axis = replace(AXES[0], measure=lambda size: (1e-3 * size**seconds, 8.0 * size**held))
    (row,) = measure_growth([axis], rounds=2)
    assert row["is_met"] is is_met
    assert row["seconds_exponent"] == pytest.approx(seconds)
    assert row["bytes_exponent"] == pytest.approx(held)


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES, ids=lambda axis: f"{axis.what} over {axis.over}")
def test_every_measurement_gives_seconds_and_bytes(axis):
    (row,) = measure_growth([replace(axis, sizes=axis.sizes[:2])], rounds=1)
    assert row["largest_seconds"] > 0
    assert row["largest_bytes"] > 0


def test_settings_are_refused():
    from experiments.benchmarks.growth import bench_growth

    with pytest.raises(EcditError, match="takes no settings"):
        bench_growth(["model=nano"], 1, 1, lambda name, total: None)
