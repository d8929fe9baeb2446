import math

import pytest
import torch

from experiments.flow.samplers import SAMPLERS, Guidance, guided, time_grid


def last(sampler, velocity, start, times):
    *_, end = SAMPLERS[sampler](velocity, start, times)
    return end


def growth(x, time_B):
    """dx/dt = x, so that x(0) = x(1) / e."""
    return x


def error(sampler, num_steps):
    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return abs(float(last(sampler, growth, start, time_grid(num_steps))) - math.exp(-1))


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_straight_line_is_exact_in_one_step(sampler):
    noise, image = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    end = last(sampler, lambda x, t: noise - image, noise, time_grid(1))
    torch.testing.assert_close(end, image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order):
    measured = math.log2(error(sampler, 64) / error(sampler, 128))
    assert measured == pytest.approx(order, abs=0.05)


def test_times_run_from_one_to_zero_and_shift_dwells_near_noise():
    even, shifted = time_grid(10), time_grid(10, shift=3.0)
    assert (even[0], even[-1], shifted[0], shifted[-1]) == (1, 0, 1, 0)
    assert even == sorted(even, reverse=True)
    assert shifted == sorted(shifted, reverse=True)
    assert all(s > e for s, e in zip(shifted[1:-1], even[1:-1], strict=True))
    assert shifted[5] == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


def branches(calls):
    """A field whose velocity is the first token of the caption; notes the batch of each call."""

    def velocity(x, time_B, caption_BL):
        calls.append(len(x))
        return caption_BL[:, 0].view(-1, 1, 1, 1).to(x.dtype).expand_as(x)

    return velocity


CAPTION, NULL = torch.full((2, 3), 5), torch.full((2, 3), 1)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.0, 5.0), (2.0, 9.0), (4.0, 17.0)])
def test_guidance_is_the_null_branch_plus_scale_times_the_difference(scale, expected):
    field = guided(branches([]), CAPTION, NULL, Guidance(scale))
    out = field(torch.zeros(2, 3, 4, 4), torch.full((2,), 0.5))
    torch.testing.assert_close(out, torch.full_like(out, expected))


def test_both_branches_are_one_call_and_no_guidance_needs_one_branch():
    for scale, batch in ((3.0, 4), (1.0, 2)):
        calls = []
        guided(branches(calls), CAPTION, NULL, Guidance(scale))(torch.zeros(2, 3, 4, 4), torch.full((2,), 0.5))
        assert calls == [batch]


def test_guidance_acts_inside_its_interval_only():
    field = guided(branches([]), CAPTION, NULL, Guidance(2.0, start=0.3, stop=0.7))
    values = [float(field(torch.zeros(2, 3, 4, 4), torch.full((2,), t)).mean()) for t in (0.1, 0.5, 0.9)]
    assert values == [5.0, 9.0, 5.0]
