"""Samplers on Gaussian images, whose paths are known, and guidance by its formula."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from experiments.config.sampler_rows import SAMPLERS, require_shift
from experiments.errors import ConfigError
from experiments.flow.ancestral import ancestral, reverse_step
from experiments.flow.objective_contract import Predicted
from experiments.flow.samplers import Guidance, find_sampler, full_times, guided, num_calls
from tests.flow_cases import CASES, Gaussian, named, objective

NOISE = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CAPTION, NULL = torch.full((2, 5), 7), torch.zeros(2, 5, dtype=torch.int64)


FLOW = objective({})
ODES = [name for name in SAMPLERS if name != "ddpm"]


def last(steps: Iterator[Tensor]) -> Tensor:
    *_, x = steps
    return x


def grid(num_steps: int) -> list[float]:
    return FLOW.grid(num_steps, 1.0)


@pytest.mark.parametrize("sampler", ODES)
def test_a_constant_velocity_is_exact_in_one_step(sampler: str) -> None:
    image = torch.randn_like(NOISE)
    result = last(find_sampler(sampler)(lambda x, time_B: Predicted(NOISE - image), NOISE, grid(1), FLOW))
    torch.testing.assert_close(result, image)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm_solver_pp", 2)])
@pytest.mark.parametrize("case", [{}, {"objective": "ddpm"}], ids=["straight", "over sigma"])
def test_the_error_falls_with_the_order_of_the_sampler(sampler: str, order: int, case: dict[str, str]) -> None:
    """Samplers run from t = 0.9 to 0.1, where the exact path of Gaussian images is known."""
    gaussian, of = Gaussian(), objective(case)

    def standard(x: Tensor, time: float) -> Tensor:
        return (x - (1 - time) * gaussian.mean) / math.hypot(time, (1 - time) * gaussian.std)

    errors = []
    for steps in (64, 128, 256):
        times = [0.9 - 0.8 * step / steps for step in range(steps + 1)]
        result = last(find_sampler(sampler)(gaussian.field, NOISE, times, of))
        errors.append(float((standard(result, 0.1) - standard(0.9 * NOISE, 0.9)).abs().max()))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("case", CASES, ids=named)
def test_times_go_from_noise_to_image_one_for_every_image(name: str, case: dict[str, object]) -> None:
    times: list[list[float]] = []
    of = objective(case)

    def field(x: Tensor, time_B: Tensor) -> Predicted:
        times.append(time_B.tolist())
        return Predicted(torch.zeros_like(x))

    assert len(list(find_sampler(name)(field, NOISE, of.grid(4, 1.0), of))) == 4
    assert len(times) == num_calls(name, 4, of)
    assert times[0] == pytest.approx([of.grid(4, 1.0)[0]] * 2)
    assert all(len(set(time)) == 1 for time in times)
    assert ([0.0, 0.0] in times) is (name == "heun" and of.evaluates_image)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_exact_denoiser_is_sampled_to_the_distribution_of_the_images(name: str, case: dict[str, object]) -> None:
    of, gaussian = objective(case), Gaussian()
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(3))

    def field(x: Tensor, time_B: Tensor) -> Predicted:
        return of.predicted(gaussian.output(of, x, time_B), x, time_B)

    result = last(find_sampler(name)(field, noise, of.grid(400, 1.0), of))
    if name == "ddpm":
        assert (float(result.mean()), float(result.std())) == pytest.approx((0.3, 0.5), abs=0.02)
        assert abs(float(torch.corrcoef(torch.stack([result.flatten(), noise.flatten()]))[0, 1])) < 0.2
    else:
        torch.testing.assert_close(result, 0.3 + 0.5 * noise, atol=0.03, rtol=0)


def test_ancestral_noise_belongs_to_the_image_and_not_to_its_place_in_a_batch() -> None:
    of, noise = objective({"objective": "ddpm"}), torch.randn(3, 2, 4, 4)
    together = last(ancestral(Gaussian().field, noise, of.grid(5, 1.0), of))
    alone = last(ancestral(Gaussian().field, noise[1:2], of.grid(5, 1.0), of))
    torch.testing.assert_close(alone, together[1:2])


def test_a_learned_variance_widens_the_noise_of_ancestral_steps_up_to_the_forward_step_s() -> None:
    x, (start, stop) = torch.randn(1, 2, 3, 3), (0.7, 0.4)
    deviations = [
        float(torch.as_tensor(reverse_step(x, Predicted(x, variance), start, stop)[1]).mean())
        for variance in (None, torch.full_like(x, -1.0), torch.zeros_like(x), torch.ones_like(x))
    ]
    fixed, least, middle, most = deviations
    assert least == pytest.approx(fixed)
    assert least < middle < most
    assert middle == pytest.approx(math.sqrt(least * most))


@pytest.mark.parametrize("name", ["ddpm", "edm"])
def test_a_shift_of_the_timesteps_belongs_to_rectified_flow(name: str) -> None:
    require_shift(3.0, "rectified_flow")
    require_shift(1.0, name)
    with pytest.raises(ConfigError, match=rf"--shift 3 does not fit flow\.objective={name}, whose noise levels have a"):
        require_shift(3.0, name)


class Field:
    """A velocity that depends on the caption, and remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, time_B: Tensor, caption_BL: Tensor) -> Predicted:
        assert len(x) == len(time_B) == len(caption_BL)
        self.batches.append(len(x))
        word = caption_BL[:, 0].view(-1, 1, 1, 1)
        return Predicted(x * word + time_B.view(-1, 1, 1, 1), word.expand_as(x))


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_goes_from_the_unconditional_towards_and_past_the_conditional(scale: float) -> None:
    field, time = Field(), torch.full((2,), 0.5)
    conditional, unconditional = field(NOISE, time, CAPTION), field(NOISE, time, NULL)
    result = guided(field, CAPTION, NULL, Guidance(scale))(NOISE, time)
    expected = torch.lerp(unconditional.velocity_BCHW, conditional.velocity_BCHW, scale)
    torch.testing.assert_close(result.velocity_BCHW, expected)
    assert torch.equal(result.variance_BCHW, conditional.variance_BCHW)


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_beyond_the_guided_ones_are_those_of_the_caption(channels: int) -> None:
    field, time = Field(), torch.full((2,), 0.5)
    plain = field(NOISE, time, CAPTION).velocity_BCHW
    all_guided = guided(field, CAPTION, NULL, Guidance(3.0))(NOISE, time).velocity_BCHW
    result = guided(field, CAPTION, NULL, Guidance(3.0, channels=channels))(NOISE, time).velocity_BCHW
    assert torch.equal(result[:, :channels], all_guided[:, :channels])
    assert torch.equal(result[:, channels:], plain[:, channels:])
    assert not torch.equal(plain, all_guided)


def test_guidance_is_one_call_with_both_captions() -> None:
    field = Field()
    guided(field, CAPTION, NULL, Guidance(2.0))(NOISE, torch.ones(2))
    assert field.batches == [4]


def test_guidance_1_is_the_conditional_alone() -> None:
    field, time = Field(), torch.ones(2)
    result = guided(field, CAPTION, NULL, Guidance(1.0))(NOISE, time)
    assert field.batches == [2]
    assert torch.equal(result.velocity_BCHW, field(NOISE, time, CAPTION).velocity_BCHW)


def test_outside_its_interval_guidance_is_off() -> None:
    field = Field()
    velocity = guided(field, CAPTION, NULL, Guidance(3.0, start=0.2, stop=0.8))
    for time in (1.0, 0.81, 0.8, 0.5, 0.2, 0.19, 0.0):
        velocity(NOISE, torch.full((2,), time, dtype=torch.float64))
    assert field.batches == [2, 2, 4, 4, 4, 2, 2]


@pytest.mark.parametrize(("first", "last_one"), [(2, 8), (7, 9), (1, 3), (6, 10), (1, 1)])
def test_a_step_whose_time_is_an_end_of_the_interval_is_guided(first: int, last_one: int) -> None:
    """Samplers hand out times in float32, in which 0.8 is larger than as a Python number and 0.7 and 0.9 smaller."""
    field = Field()
    velocity = guided(field, CAPTION, NULL, Guidance(3.0, start=first / 10, stop=last_one / 10))
    for time in grid(10):
        velocity(NOISE, full_times(NOISE, time))
    tenths = range(10, -1, -1)
    assert field.batches == [4 if first <= tenth <= last_one else 2 for tenth in tenths]
