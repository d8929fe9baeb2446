"""Every objective of the registry against its paper's equations, and against what is known of Gaussian images."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from experiments.config.flow_settings import FlowConfig
from experiments.config.objectives import LARGEST_SIGMA, LEAST_SIGMA, OBJECTIVES, loss_is_velocity_error
from experiments.config.overrides import load_config
from experiments.errors import ConfigError
from experiments.flow.ddpm import Ddpm
from experiments.flow.objective_contract import spread
from experiments.flow.rectified_flow import LEAST_TIME
from tests.flow_cases import CASES, LEARNED, Gaussian, named, noisy, objective

TIMES = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.98])
IMAGE = Gaussian().images((5, 6, 4)).clamp(-1, 1)
NOISE, NOISY = noisy(IMAGE, TIMES)

each_case = pytest.mark.parametrize("case", CASES, ids=named)


def test_the_settings_name_every_objective_and_prediction_of_the_registry() -> None:
    fields = FlowConfig.model_fields
    assert get_args(fields["objective"].annotation) == tuple(OBJECTIVES)
    known = {prediction for row in OBJECTIVES.values() for prediction in row.predictions}
    assert set(get_args(fields["prediction"].annotation)) == known
    assert {key for row in OBJECTIVES.values() for key in row.defaults} | {"objective"} == set(fields)


@each_case
def test_the_target_gives_the_velocity_from_image_to_noise(case: dict[str, object]) -> None:
    of = objective(case)
    found = of.predicted(of.target(IMAGE, NOISE, TIMES), NOISY, TIMES)
    torch.testing.assert_close(found.velocity_BCHW, NOISE - IMAGE, rtol=1e-3, atol=1e-4)


@each_case
def test_the_velocity_error_is_that_of_the_implied_velocity(case: dict[str, object]) -> None:
    of = objective(case)
    predicted = of.target(IMAGE, NOISE, TIMES) + 0.1 * torch.randn_like(IMAGE)
    wrong_by = of.predicted(predicted, NOISY, TIMES).velocity_BCHW - (NOISE - IMAGE)
    found = of.losses(predicted, IMAGE, NOISE, TIMES)
    torch.testing.assert_close(found.velocity_error_B, wrong_by.square().mean(dim=(1, 2)), rtol=1e-3, atol=1e-5)
    if loss_is_velocity_error(of.flow.objective, of.flow.prediction):
        assert torch.equal(found.loss_B, found.velocity_error_B)


@each_case
def test_the_network_reads_a_multiple_of_the_image_and_a_time_between_0_and_1(case: dict[str, object]) -> None:
    read, time_B = objective(case).network_input(NOISY, TIMES)
    factor_B = (read / NOISY)[:, 0, 0]
    torch.testing.assert_close(read, spread(factor_B, NOISY) * NOISY)
    assert (factor_B > 0).all()
    assert ((time_B >= 0) & (time_B <= 1)).all()
    assert (time_B.diff() > 0).all()


@each_case
def test_the_mean_time_of_training_is_as_its_row_says(case: dict[str, object]) -> None:
    of = objective(case)
    time_B = of.draw_times((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    _, fed_B = of.network_input(torch.ones(20_000, 1, 1, 1), time_B)
    assert float(fed_B.mean()) == pytest.approx(OBJECTIVES[of.flow.objective].mean_time(of.flow), abs=1e-3)


@each_case
def test_no_loss_of_gaussian_images_is_below_that_of_the_exact_denoiser(case: dict[str, object]) -> None:
    of, gaussian = objective(case), Gaussian()
    time_B = torch.tensor([0.1, 0.4, 0.7, 0.9])
    image = gaussian.images((4, 400, 500))
    noise, x = noisy(image, time_B)
    exact = gaussian.output(of, x, time_B)
    losses = of.losses(exact, image, noise, time_B)
    torch.testing.assert_close(losses.velocity_error_B, gaussian.velocity_variance(time_B), rtol=0.02, atol=0)
    worse = of.losses(exact * 1.1 + 0.05, image, noise, time_B)
    assert (worse.loss_B > losses.loss_B).all()


def betas(schedule: str) -> list[float]:
    if schedule == "linear":
        return [1e-4 + n * (0.02 - 1e-4) / 999 for n in range(1000)]
    level = [math.cos((n / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(1001)]
    return [min(1 - level[n + 1] / level[n], 0.999) for n in range(1000)]


def alpha_bars(schedule: str) -> list[float]:
    found, left = [], 1.0
    for beta in betas(schedule):
        left *= 1 - beta
        found.append(left)
    return found


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_draws_every_step_and_feeds_its_number(schedule: str) -> None:
    of = objective({"objective": "ddpm", "schedule": schedule})
    time_B = of.draw_times((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    x_B111 = torch.ones(1000, 1, 1, 1)
    _, fed_B = of.network_input(x_B111, time_B)
    assert torch.equal((fed_B * 1000).round(), torch.arange(1000.0))
    assert of.draw_times(torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)).tolist() == [time_B[0], time_B[-1]]


@pytest.mark.parametrize("prediction", OBJECTIVES["ddpm"].predictions)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_is_its_paper_s_equations(schedule: str, prediction: str) -> None:
    of = objective({"objective": "ddpm", "schedule": schedule, "prediction": prediction})
    bars = torch.tensor([alpha_bars(schedule)[n] for n in (0, 10, 300, 700, 950)])
    alpha, sigma = bars.sqrt(), (1 - bars).sqrt()
    time_B = (sigma / (alpha + sigma)).float()
    noise, x = noisy(IMAGE, time_B)
    read, fed_B = of.network_input(x, time_B)
    alpha, sigma = (spread(each, IMAGE) for each in (alpha, sigma))
    torch.testing.assert_close(read, alpha * IMAGE + sigma * noise, rtol=1e-4, atol=1e-5)
    assert (fed_B * 1000).round().tolist() == [0, 10, 300, 700, 950]
    target = {"noise": noise, "v": alpha * noise - sigma * IMAGE, "x0": IMAGE}[prediction]
    torch.testing.assert_close(of.target(IMAGE, noise, time_B), target, rtol=1e-4, atol=1e-5)
    predicted = target + 0.2
    torch.testing.assert_close(
        of.losses(predicted, IMAGE, noise, time_B).loss_B, torch.full((5,), 0.04), rtol=1e-3, atol=0
    )


def reverse_step_and_posterior(
    schedule: str, step: int, image: Tensor, x: Tensor, predicted: Tensor
) -> tuple[Normal, ...]:
    """The true posterior at x_n, and the reverse step of a predicted image, with the variance half way in its log."""
    bar, before, beta = alpha_bars(schedule)[step], alpha_bars(schedule)[step - 1], betas(schedule)[step]
    posterior = beta * (1 - before) / (1 - bar)

    def mean(of: Tensor) -> Tensor:
        return (math.sqrt(before) * beta * of + math.sqrt(1 - beta) * (1 - before) * x) / (1 - bar)

    return Normal(mean(image), math.sqrt(posterior)), Normal(mean(predicted), (posterior * beta) ** 0.25)


def at_step(schedule: str, step: int) -> Tensor:
    bar = alpha_bars(schedule)[step]
    return torch.full((1,), math.sqrt(1 - bar) / (math.sqrt(bar) + math.sqrt(1 - bar)))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("step", [1, 40, 600])
def test_the_learned_variance_learns_from_the_divergence_of_the_reverse_step(schedule: str, step: int) -> None:
    of, time_B = objective({**LEARNED, "schedule": schedule}), at_step(schedule, step)
    image = IMAGE[:1]
    noise, _ = noisy(image, time_B)
    bar = alpha_bars(schedule)[step]
    wrong = noise + 0.1
    predicted_image = (math.sqrt(bar) * image + math.sqrt(1 - bar) * (noise - wrong)) / math.sqrt(bar)
    x_n = math.sqrt(bar) * image + math.sqrt(1 - bar) * noise
    true, reverse = reverse_step_and_posterior(schedule, step, image, x_n, predicted_image)
    bits = kl_divergence(true, reverse).mean() / math.log(2)
    both = torch.cat([wrong, torch.zeros_like(wrong)], dim=-1)
    found = of.losses(both, image, noise, time_B)
    torch.testing.assert_close(found.loss_B, (0.1**2 + bits).view(1), rtol=2e-3, atol=1e-5)


def test_at_the_first_step_the_bound_is_the_likelihood_of_pixels_of_256_values() -> None:
    of, time_B = objective(LEARNED), at_step("linear", 0)
    assert isinstance(of, Ddpm)
    image = (torch.arange(256.0) / 127.5 - 1).view(1, 16, 16)
    log_beta, log_posterior = of.schedule.log_beta_N[0], of.schedule.log_posterior_N[0]
    normal = Normal(image, math.exp((log_beta + log_posterior) / 4))
    chance = normal.cdf(image + 1 / 255) - normal.cdf(image - 1 / 255)
    chance[image == -1] = normal.cdf(image + 1 / 255)[image == -1]
    chance[image == 1] = 1 - normal.cdf(image - 1 / 255)[image == 1]
    bits = -chance.log().mean() / math.log(2)
    found = of.variance_bound(torch.zeros_like(image), torch.zeros_like(image), image, time_B)
    torch.testing.assert_close(found, bits.view(1), rtol=0.02, atol=1e-3)


def test_the_bound_trains_the_variance_alone() -> None:
    of = objective(LEARNED)
    both = torch.cat([NOISE + 0.1, torch.full_like(NOISE, 0.2)], dim=-1).requires_grad_()
    of.losses(both, IMAGE, NOISE, TIMES).loss_B.sum().backward()
    mean, variance = both.grad.chunk(2, dim=-1)
    plain = (NOISE + 0.1).requires_grad_()
    objective({"objective": "ddpm"}).losses(plain, IMAGE, NOISE, TIMES).loss_B.sum().backward()
    torch.testing.assert_close(mean, plain.grad)
    assert (variance != 0).any(dim=-1).all()


def test_edm_is_its_paper_s_preconditioned_denoiser() -> None:
    of, std = objective({"objective": "edm", "data_std": 0.7}), 0.7
    sigma_B = torch.tensor([0.01, 0.3, 1.0, 5.0, 60.0])
    time_B = sigma_B / (1 + sigma_B)
    noise, x = noisy(IMAGE, time_B)
    sigma = spread(sigma_B, IMAGE)
    image_in = IMAGE + sigma * noise
    read, fed_B = of.network_input(x, time_B)
    total = sigma**2 + std**2
    torch.testing.assert_close(read, image_in / total.sqrt(), rtol=1e-4, atol=1e-5)
    c_noise_B, ends = sigma_B.log() / 4, [math.log(each) / 4 for each in (LEAST_SIGMA, LARGEST_SIGMA)]
    torch.testing.assert_close(fed_B, (c_noise_B - ends[0]) / (ends[1] - ends[0]), rtol=1e-4, atol=1e-5)
    output = torch.randn_like(IMAGE)
    denoised = std**2 / total * image_in + sigma * std / total.sqrt() * output
    weighted = (total / (sigma * std) ** 2 * (denoised - IMAGE) ** 2).mean(dim=(1, 2))
    torch.testing.assert_close(of.losses(output, IMAGE, noise, time_B).loss_B, weighted, rtol=1e-3, atol=1e-4)
    velocity = of.predicted(output, x, time_B).velocity_BCHW
    torch.testing.assert_close(x - spread(time_B, x) * velocity, denoised, rtol=1e-3, atol=1e-4)


def test_edm_draws_noise_levels_whose_logarithm_is_normal() -> None:
    quantiles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    logs = objective({"objective": "edm"}).draw_times(quantiles).logit()
    assert (logs.mean().item(), logs.std().item()) == pytest.approx((-1.2, 1.2), abs=0.01)


def test_the_loss_of_a_predicted_image_is_that_of_its_velocity_with_a_bounded_weight() -> None:
    of = objective({"prediction": "x0"})
    found = of.losses(IMAGE + 0.1, IMAGE, NOISE, TIMES)
    weights = 0.01 / TIMES.clamp(min=LEAST_TIME) ** 2
    torch.testing.assert_close(found.loss_B, weights, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.velocity_error_B, 0.01 / TIMES**2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("bits", [torch.float32, torch.bfloat16])
def test_the_loss_is_a_mean_over_tokens_and_values_in_float32(bits: torch.dtype) -> None:
    predicted, image = torch.ones(2, 3, 4, dtype=bits), torch.zeros(2, 3, 4)
    noise = torch.ones(2, 3, 4)
    noise[0, 0, 0] = 7.0
    loss_B = objective({}).losses(predicted, image, noise, torch.full((2,), 0.5)).loss_B
    assert (loss_B.dtype, loss_B.tolist()) == (torch.float32, [3.0, 0.0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("flow.prediction=noise", r"flow\.prediction=noise does not fit flow\.objective=rectified_flow, with which"),
        ("flow.objective=edm flow.prediction=v", r"flow\.prediction=v does not fit flow\.objective=edm"),
        ("flow.objective=ddpm flow.time_mean=1", r"flow\.time_mean=1\.0 does not fit flow\.objective=ddpm, which"),
        ("flow.schedule=cosine", r"flow\.schedule=cosine does not fit flow\.objective=rectified_flow"),
        ("flow.objective=edm flow.learned_sigma=True", r"flow\.learned_sigma=True does not fit flow\.objective=edm"),
        ("flow.objective=ddpn", r"flow\.objective='ddpn' is not 'rectified_flow', 'ddpm' or 'edm'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_with_a_way_out(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(["model=nano", *given.split()])
    assert refused.value.hint


@each_case
def test_every_case_of_the_registry_is_a_valid_config(case: dict[str, object]) -> None:
    config = load_config(["model=nano", *(f"flow.{key}={value}" for key, value in case.items())])
    assert config.flow.objective == case["objective"]
