"""Our samplers against the schedulers of diffusers, step by step, with the exact denoiser of Gaussian images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.config.objectives import LARGEST_SIGMA, LEAST_SIGMA
from experiments.flow.ancestral import reverse_step
from experiments.flow.objective_contract import Predicted
from experiments.flow.samplers import find_sampler
from tests.flow_cases import Gaussian, objective

diffusers = pytest.importorskip("diffusers", reason="diffusers comes with the extras data and dev")

# diffusers hands tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = Gaussian()
NUM_STEPS = 20
SCHEDULES = pytest.mark.parametrize(("schedule", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
DDPM: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}


def ours(sampler: str, times: list[float], of: dict[str, Any]) -> list[Tensor]:
    return list(find_sampler(sampler)(IMAGES.field, NOISE, times, objective(of)))


def noise_at(x: Tensor, time: float) -> Tensor:
    """The noise that the exact denoiser finds in x on the straight path."""
    return x + (1 - time) * IMAGES.velocity(x, torch.tensor([time], dtype=torch.float64))


def image_at(x: Tensor, time: float) -> Tensor:
    return x - time * IMAGES.velocity(x, torch.tensor([time], dtype=torch.float64))


def time_of(sigma: float) -> float:
    """The time of sigma / alpha."""
    return float(sigma / (1 + sigma))


def assert_same_steps(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)  # their noise levels are of float32


def theirs_over_steps(scheduler: Any, predict: Callable[[Tensor, float], Tensor]) -> tuple[list[float], list[Tensor]]:
    """Runs a scheduler whose x has alpha^2 + sigma^2 = 1; returns our times, and x after each step as we scale it."""
    bars = scheduler.alphas_cumprod.double()
    times = [time_of(((1 - bars[step]) / bars[step]).sqrt()) for step in scheduler.timesteps.tolist()] + [0.0]

    def norm(time: float) -> float:
        return float((time**2 + (1 - time) ** 2) ** 0.5)

    x, found = times[0] * NOISE / norm(times[0]), []
    for place, step in enumerate(scheduler.timesteps):
        x = scheduler.step(predict(x * norm(times[place]), times[place]), step, x).prev_sample
        found.append(x * norm(times[place + 1]))
    return times, found


@SCHEDULES
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_ddim(schedule: str, theirs: str, prediction: str) -> None:
    scheduler = diffusers.DDIMScheduler(
        **DDPM, beta_schedule=theirs, timestep_spacing="trailing", prediction_type=prediction
    )
    scheduler.set_timesteps(NUM_STEPS)
    times, expected = theirs_over_steps(scheduler, noise_at if prediction == "epsilon" else image_at)
    assert_same_steps(ours("ddim", times, {"objective": "ddpm", "schedule": schedule}), expected)


@SCHEDULES
def test_the_grid_of_ddpm_is_linspace(schedule: str, theirs: str) -> None:
    scheduler = diffusers.DDPMScheduler(**DDPM, beta_schedule=theirs, timestep_spacing="linspace")
    scheduler.set_timesteps(NUM_STEPS)
    bars = scheduler.alphas_cumprod.double()
    expected = [time_of(((1 - bars[step]) / bars[step]).sqrt()) for step in scheduler.timesteps.tolist()]
    found = objective({"objective": "ddpm", "schedule": schedule}).grid(NUM_STEPS, 1.0)
    assert found == pytest.approx([*expected, 0.0], rel=1e-3)


@SCHEDULES
@pytest.mark.parametrize("is_learned", [False, True])
def test_ancestral_steps(schedule: str, theirs: str, is_learned: bool) -> None:
    """Their noise is known from the seed, so that mean and deviation are compared.

    Where steps are left out, diffusers bounds a learned variance by beta of one step of the schedule. The public code
    of DiT bounds it by that of the longer step, as we do. The two are equal where no step is left out.
    """
    kind = "learned_range" if is_learned else "fixed_small"
    scheduler = diffusers.DDPMScheduler(**DDPM, beta_schedule=theirs, variance_type=kind, timestep_spacing="trailing")
    scheduler.set_timesteps(1000 if is_learned else NUM_STEPS)
    variance = torch.linspace(-1, 1, NOISE.numel(), dtype=torch.float64).view_as(NOISE) if is_learned else None
    means: list[tuple[Tensor, Tensor]] = []

    def predict(x: Tensor, time: float) -> Tensor:
        means.append((x, noise_at(x, time)))
        return means[-1][1] if variance is None else torch.cat([means[-1][1], variance], dim=1)

    torch.manual_seed(5)
    times, expected = theirs_over_steps(scheduler, predict)
    torch.manual_seed(5)
    for place, (x, _) in enumerate(means):
        predicted = Predicted(IMAGES.velocity(x, torch.tensor([times[place]], dtype=torch.float64)), variance)
        mean, std = reverse_step(x, predicted, times[place], times[place + 1])
        fresh = torch.randn(NOISE.shape, dtype=torch.float64) if times[place + 1] else torch.zeros_like(NOISE)
        torch.testing.assert_close(mean + std * fresh, expected[place], rtol=1e-3, atol=1e-4)


def theirs_over_sigmas(scheduler: Any, scale: Callable[[float], float]) -> tuple[list[float], list[Tensor]]:
    """Runs a scheduler that stores sigma / alpha of its steps; `scale` is that of its x beside ours at a time."""
    times = [time_of(sigma) for sigma in scheduler.sigmas.tolist()]
    x, found = times[0] * NOISE * scale(times[0]), []
    for place, step in enumerate(scheduler.timesteps):
        output = noise_at(x / scale(times[place]), times[place])
        x = scheduler.step(output, step, x).prev_sample
        found.append(x / scale(times[place + 1]))
    return times, found


@SCHEDULES
def test_euler_over_sigma(schedule: str, theirs: str) -> None:
    common = {name: value for name, value in DDPM.items() if name != "clip_sample"}
    scheduler = diffusers.EulerDiscreteScheduler(**common, beta_schedule=theirs)
    scheduler.set_timesteps(NUM_STEPS)
    scheduler.is_scale_input_called = True
    times, expected = theirs_over_sigmas(scheduler, lambda time: 1 / (1 - time))
    assert_same_steps(ours("euler", times, {"objective": "ddpm", "schedule": schedule}), expected)


@SCHEDULES
def test_dpm_solver_pp(schedule: str, theirs: str) -> None:
    common = {name: value for name, value in DDPM.items() if name != "clip_sample"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**common, beta_schedule=theirs, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(NUM_STEPS)
    times, expected = theirs_over_sigmas(scheduler, lambda time: 1 / (time**2 + (1 - time) ** 2) ** 0.5)
    assert_same_steps(ours("dpm_solver_pp", times, {"objective": "ddpm", "schedule": schedule}), expected)


def test_euler_on_the_grid_of_edm() -> None:
    """Their scheduler preconditions the network itself: it takes F and computes c_skip x + c_out F."""
    scheduler = diffusers.EDMEulerScheduler(sigma_min=LEAST_SIGMA, sigma_max=LARGEST_SIGMA, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(NUM_STEPS)
    of = objective({"objective": "edm"})
    times = of.grid(NUM_STEPS, 1.0)
    assert [time_of(sigma) for sigma in scheduler.sigmas.tolist()] == pytest.approx(times, rel=1e-4)
    sigmas = [time / (1 - time) for time in times]
    x, expected = sigmas[0] * NOISE, []
    for place, step in enumerate(scheduler.timesteps):
        read = scheduler.scale_model_input(x, step)
        time_B = torch.full((2,), times[place], dtype=torch.float64)
        mine, fed_B = of.network_input(x * (1 - times[place]), time_B)
        torch.testing.assert_close(read.double(), mine, rtol=1e-4, atol=1e-5)
        output = IMAGES.output(of, x * (1 - times[place]), time_B)
        x = scheduler.step(output, step, x).prev_sample
        expected.append(x * (1 - times[place + 1]))
        assert 0 <= float(fed_B[0]) <= 1
    assert_same_steps(ours("euler", times, {"objective": "edm"}), expected)


def test_euler_on_the_straight_path() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    times = objective({}).grid(NUM_STEPS, 1.0)
    scheduler.set_timesteps(sigmas=times[:-1])
    x, expected = NOISE, []
    for place, step in enumerate(scheduler.timesteps):
        velocity = IMAGES.velocity(x, torch.tensor([times[place]], dtype=torch.float64))
        x = scheduler.step(velocity, step, x).prev_sample
        expected.append(x)
    assert_same_steps(ours("euler", times, {}), [each.double() for each in expected])
