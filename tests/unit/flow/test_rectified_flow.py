"""The straight path, its derivative, and the grid of times."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from experiments.flow.objective_contract import interpolate
from tests.flow_cases import objective

IMAGE, NOISE = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)


def test_the_path_starts_at_the_image_and_ends_at_the_noise() -> None:
    assert torch.equal(interpolate(IMAGE, NOISE, torch.zeros(4)), IMAGE)
    assert torch.equal(interpolate(IMAGE, NOISE, torch.ones(4)), NOISE)


def test_every_image_has_its_own_time() -> None:
    time = torch.tensor([0.0, 0.25, 0.5, 1.0])
    mixed = interpolate(IMAGE, NOISE, time)
    for i in range(4):
        assert torch.equal(mixed[i], interpolate(IMAGE, NOISE, time[i].expand(4))[i])


def test_the_target_is_the_derivative_of_the_path() -> None:
    time = torch.tensor([0.1, 0.4, 0.6, 0.9])
    later, earlier = (interpolate(IMAGE, NOISE, time + step) for step in (0.05, -0.05))
    torch.testing.assert_close((later - earlier) / 0.1, objective({}).target(IMAGE, NOISE, time), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_grid_falls_from_1_to_0(shift: float) -> None:
    grid = objective({}).grid(10, shift)
    assert (len(grid), grid[0], grid[-1]) == (11, 1.0, 0.0)
    assert all(later < earlier for earlier, later in pairwise(grid))


def test_a_shift_spends_more_steps_near_noise() -> None:
    assert objective({}).grid(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert objective({}).grid(4, 3.0) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
