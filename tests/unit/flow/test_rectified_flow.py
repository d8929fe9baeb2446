import torch

from experiments.flow.rectified_flow import interpolate, velocity_loss, velocity_target


def images(seed):
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_the_path_runs_from_the_image_to_the_noise():
    image, noise = images(0), images(1)
    torch.testing.assert_close(interpolate(image, noise, torch.zeros(3)), image)
    torch.testing.assert_close(interpolate(image, noise, torch.ones(3)), noise)


def test_each_image_stands_at_its_own_time():
    image, noise = images(0), images(1)
    mixed = interpolate(image, noise, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(mixed[1], 0.75 * image[1] + 0.25 * noise[1])


def test_the_target_is_the_derivative_of_the_path():
    image, noise, t = images(0).double(), images(1).double(), torch.full((3,), 0.4, dtype=torch.float64)
    step = 1e-6
    slope = (interpolate(image, noise, t + step) - interpolate(image, noise, t - step)) / (2 * step)
    torch.testing.assert_close(slope, velocity_target(image, noise), rtol=1e-6, atol=1e-6)


def test_the_loss_is_one_mean_per_image_in_float32():
    predicted = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    target = torch.stack([torch.full((3, 4), 2.0), torch.full((3, 4), 3.0)])
    loss = velocity_loss(predicted, target)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [4.0, 9.0]
