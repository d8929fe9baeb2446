"""The path, its derivative, and the loss."""

from __future__ import annotations

import torch

from experiments.flow.rectified_flow import interpolate, velocity_loss, velocity_target

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
    torch.testing.assert_close((later - earlier) / 0.1, velocity_target(IMAGE, NOISE), atol=1e-4, rtol=1e-4)


def test_the_loss_is_a_mean_over_tokens_and_values_of_each_image() -> None:
    predicted, target = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    target[0, 0, 0] = 6.0
    assert velocity_loss(predicted, target).tolist() == [3.0, 0.0]


def test_the_loss_is_float32_whatever_the_prediction() -> None:
    predicted, target = torch.full((1, 64, 48), 1.0).bfloat16(), torch.full((1, 64, 48), 1.001)
    loss = velocity_loss(predicted, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([1e-6]), rtol=1e-3, atol=0.0)
