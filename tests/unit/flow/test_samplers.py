"""Samplers on equations whose answers are known, and guidance by its formula."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from experiments.flow.samplers import SAMPLERS, Guidance, euler, guided, heun, time_grid

NOISE = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CAPTION, NULL = torch.full((2, 5), 7), torch.zeros(2, 5, dtype=torch.int64)


def last(steps: Iterator[Tensor]) -> Tensor:
    *_, x = steps
    return x


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_a_constant_velocity_is_exact_in_one_step(sampler) -> None:
    image = torch.randn_like(NOISE)
    result = last(sampler(lambda x, time_B: NOISE - image, NOISE, time_grid(1)))
    torch.testing.assert_close(result, image)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_the_error_on_a_linear_equation_falls_with_the_order_of_the_sampler(sampler, order: int) -> None:
    """dx/dt = x from t = 1 to 0: x(0) = x(1) / e."""
    errors = [
        float((last(sampler(lambda x, time_B: x, NOISE, time_grid(steps))) - NOISE / math.e).abs().max())
        for steps in (32, 64, 128)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_heun_is_exact_where_the_velocity_is_linear_in_time() -> None:
    """dx/dt = 2 t: x(0) = x(1) - 1."""
    field = lambda x, time_B: 2 * time_B.double().view(-1, 1, 1, 1).expand_as(x)  # noqa: E731
    torch.testing.assert_close(last(heun(field, NOISE, time_grid(3))), NOISE - 1, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sampler", "calls_a_step"), [(euler, 1), (heun, 2)])
def test_times_go_from_noise_to_image_one_for_every_image(sampler, calls_a_step: int) -> None:
    times: list[list[float]] = []

    def field(x: Tensor, time_B: Tensor) -> Tensor:
        times.append(time_B.tolist())
        return torch.zeros_like(x)

    assert len(list(sampler(field, NOISE, time_grid(4)))) == 4
    assert len(times) == 4 * calls_a_step
    assert times[0] == [1.0, 1.0]
    assert all(len(set(time)) == 1 for time in times)
    assert times[-1] == ([0.0, 0.0] if calls_a_step == 2 else [0.25, 0.25])


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_grid_falls_from_1_to_0(shift: float) -> None:
    grid = time_grid(10, shift)
    assert (len(grid), grid[0], grid[-1]) == (11, 1.0, 0.0)
    assert all(later < earlier for earlier, later in pairwise(grid))


def test_a_shift_spends_more_steps_near_noise() -> None:
    assert time_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(4, 3.0) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


class Field:
    """A velocity that depends on the caption, and remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, time_B: Tensor, caption_BL: Tensor) -> Tensor:
        assert len(x) == len(time_B) == len(caption_BL)
        self.batches.append(len(x))
        return x * caption_BL[:, 0].view(-1, 1, 1, 1) + time_B.view(-1, 1, 1, 1)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_goes_from_the_unconditional_towards_and_past_the_conditional(scale: float) -> None:
    field, time = Field(), torch.full((2,), 0.5)
    conditional, unconditional = field(NOISE, time, CAPTION), field(NOISE, time, NULL)
    result = guided(field, CAPTION, NULL, Guidance(scale))(NOISE, time)
    torch.testing.assert_close(result, unconditional + scale * (conditional - unconditional))


def test_guidance_is_one_call_with_both_captions() -> None:
    field = Field()
    guided(field, CAPTION, NULL, Guidance(2.0))(NOISE, torch.ones(2))
    assert field.batches == [4]


def test_guidance_1_is_the_conditional_alone() -> None:
    field, time = Field(), torch.ones(2)
    result = guided(field, CAPTION, NULL, Guidance(1.0))(NOISE, time)
    assert field.batches == [2]
    assert torch.equal(result, field(NOISE, time, CAPTION))


def test_outside_its_interval_guidance_is_off() -> None:
    field = Field()
    velocity = guided(field, CAPTION, NULL, Guidance(3.0, start=0.2, stop=0.8))
    for time in (1.0, 0.81, 0.8, 0.5, 0.2, 0.19, 0.0):
        velocity(NOISE, torch.full((2,), time, dtype=torch.float64))
    assert field.batches == [2, 2, 4, 4, 4, 2, 2]
