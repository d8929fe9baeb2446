"""Where the time of a step goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiments.benchmarks.step_shares import PARTS, measure_step_shares
from experiments.config.schema import RunConfig
from experiments.training.clock import RecordingClock


def test_the_parts_and_the_rest_are_the_iteration(tiny: Callable[..., RunConfig]) -> None:
    found = measure_step_shares(tiny(), steps=7)
    assert all(value > 0 for value in found.values())
    parts = [found[f"{name}_seconds"] for name in (*PARTS, "other")]
    assert sum(parts) == pytest.approx(found["iteration_seconds"], rel=0.3)  # medians of parts need not add up
    assert found["compute_share"] < 1
    assert found["images_per_second"] == pytest.approx(8 / found["iteration_seconds"])


def test_a_clock_sums_what_happens_twice_in_a_step() -> None:
    clock = RecordingClock()
    for _ in range(2):
        with clock.part("forward"):
            pass
    once = clock.take()
    assert list(once) == ["forward"]
    assert clock.take() == {}
