"""What saving costs is measured on a real run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiments.benchmarks.saving_cost import measure_saving
from experiments.config.schema import RunConfig


def test_the_share_is_that_of_the_cadence(tiny: Callable[..., RunConfig]) -> None:
    steps: list[None] = []
    found = measure_saving(tiny("checkpoint.every_images=800"), 6, 2, lambda: steps.append(None))
    assert len(steps) == 1 + 3 * 6
    assert found["cadence_iterations"] == 100
    assert found["stall_share"] == pytest.approx(found["extra_seconds"] / (100 * found["iteration_seconds"]))
    assert found["copy_seconds"] > 0
    assert found["checkpoint_bytes"] > 16 * 100_000
