"""Imported weights against the public code itself, where a user names a checkout of it.

    ECDIT_PUBLIC_DIT=DIR ECDIT_PUBLIC_DIT_MOE=DIR pytest -s tests/integration/test_public_code.py

The public networks need timm. Each test builds a public model with random weights, saves its checkpoint as the public
training script does, imports it with the command, and holds outputs and whole guided samples equal. `-s` shows the
largest differences. `test_imported_run.py` compares with an independent form of the networks, and is never skipped.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ecdit_cli.app import run
from experiments.benchmarks.public_checkouts import import_from
from experiments.config.objectives import NOISE_STEPS
from experiments.evaluation.sampling.generate import SamplerSettings, integrate
from experiments.evaluation.sampling.load_run import LoadedRun, load_run
from experiments.flow import ancestral
from experiments.flow.ddpm import noise_schedule
from experiments.flow.objective_contract import objective_of
from experiments.flow.samplers import Guidance
from experiments.records.run_folder import RunDir

CHECKOUTS = {"dit": "ECDIT_PUBLIC_DIT", "dit-moe": "ECDIT_PUBLIC_DIT_MOE"}
REPOSITORIES = {"dit": "facebookresearch/DiT", "dit-moe": "feizc/DiT-MoE"}
SIDE, CLASSES, HEADS = 16, 10, 4
SIZES = {"input_size": SIDE, "hidden_size": 64, "depth": 4, "num_heads": HEADS, "num_classes": CLASSES}
OF_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
LABELS = torch.tensor([3, 7])
NULL = torch.full_like(LABELS, CLASSES)
SCALE = 4.0
STEPS_OF_DDPM, STEPS_OF_FLOW = 250, 50
"""The steps of the public `sample.py`: of DDPM, and of DiT-MoE's rectified flow."""


class Public(NamedTuple):
    """A public model with random weights, the modules of its checkout, and the run of its checkpoint."""

    model: Any
    diffusion: ModuleType
    folder: Path
    loaded: LoadedRun


@pytest.fixture
def public(request: pytest.FixtureRequest, tmp_path: Path) -> Public:
    """The public model and the run of its checkpoint, for a layout and an objective."""
    layout, objective = request.param
    variable = CHECKOUTS[layout]
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no checkout of {REPOSITORIES[layout]}")
    pytest.importorskip("timm", reason="the public networks need timm")
    folder = Path(os.environ[variable])
    models, diffusion = import_from(folder, ("models", "diffusion"))
    torch.manual_seed(0)
    model = models.DiT(**SIZES, **(OF_EXPERTS if layout == "dit-moe" else {})).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not parameter.any() or name.endswith("bias"):
            parameter.normal_(std=0.1)  # what begins at zero would hide what it multiplies
    state = model.state_dict()
    args = argparse.Namespace(image_size=8 * SIDE)
    torch.save({"model": state, "ema": state, "opt": {"state": {}}, "args": args}, tmp_path / "public.pt")
    words = [layout, str(tmp_path / "public.pt"), str(tmp_path / "run"), "--num-heads", str(HEADS)]
    assert run(["import-weights", *words, "--objective", objective]) == 0
    return Public(model, diffusion, folder, load_run(RunDir(tmp_path / "run"), "ema", print))


def of(*cases: tuple[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("public", cases, indirect=True, ids=[" ".join(case) for case in cases])


every_case = of(("dit", "ddpm"), ("dit-moe", "ddpm"), ("dit-moe", "rectified_flow"))
of_ddpm = of(("dit", "ddpm"), ("dit-moe", "ddpm"))
of_flow = of(("dit-moe", "rectified_flow"))


def assert_same(what: str, ours: Tensor, theirs: Tensor, most: float) -> None:
    """The largest difference is at most `most` times the largest value."""
    largest, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    print(f"\n{what}: largest difference {largest:.2e}, largest value {scale:.3g}, quotient {largest / scale:.1e}")
    assert scale > 0.3
    assert largest <= most * scale


@every_case
def test_outputs(public: Public) -> None:
    x, y = torch.randn(4, 4, SIDE, SIDE), torch.tensor([0, 3, CLASSES - 1, CLASSES])
    is_ddpm = public.loaded.config.flow.objective == "ddpm"
    t = torch.tensor([0.0, 0.31, 0.77, 0.999])
    with torch.no_grad():
        ours = public.loaded.model.to_image(public.loaded.model(x, t, y).velocity_BKP)
        theirs = public.model(x, t * NOISE_STEPS if is_ddpm else t, y)
    assert_same("output", ours, theirs[:, : ours.shape[1]], 1e-5)
    assert ours.shape[1] == (8 if is_ddpm else 4)  # with DDPM the variance too


@of_flow
def test_guided_samples_of_rectified_flow(public: Public) -> None:
    (module,) = import_from(public.folder, ("diffusion.rectified_flow",))
    flow = module.RectifiedFlow(public.model)
    z = torch.randn(2, 4, SIDE, SIDE)
    *_, theirs = flow.sample(z, LABELS, NULL, sample_steps=STEPS_OF_FLOW, cfg=SCALE)
    ours = integrate(public.loaded.model, LABELS, NULL, z, SamplerSettings(STEPS_OF_FLOW, Guidance(SCALE)))
    assert_same(f"sample of {STEPS_OF_FLOW} guided steps", ours, theirs, 1e-4)


def on_all_channels(model: Any) -> Any:
    """The public `forward_with_cfg` with the line for all channels that its comment names, in place of three."""

    def forward(x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        half = x[: len(x) // 2]
        out = model(torch.cat([half, half]), t, y)
        eps, rest = out[:, : model.in_channels], out[:, model.in_channels :]
        cond, uncond = eps.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=1)

    return forward


@of_ddpm
@torch.no_grad()
def test_a_step_of_ddpm(public: Public) -> None:
    """Mean and variance of the reverse step, at the first, a middle and the last of 250 steps."""
    diffusion = public.diffusion.create_diffusion(str(STEPS_OF_DDPM))
    objective, model = objective_of(public.loaded.config.flow), public.loaded.model
    times, x = objective.grid(STEPS_OF_DDPM, 1.0), torch.randn(2, 4, SIDE, SIDE)
    assert times[:-1] == noise_schedule("linear").time_N[diffusion.timestep_map[::-1]].tolist()
    given = {"y": LABELS}
    for place in (0, 125, STEPS_OF_DDPM - 1):
        number = torch.full((2,), STEPS_OF_DDPM - 1 - place)
        theirs = diffusion.p_mean_variance(public.model, x, number, clip_denoised=False, model_kwargs=given)
        start, stop = times[place : place + 2]
        norm, next_norm = (((1 - time) ** 2 + time**2) ** 0.5 for time in (start, stop))
        straight = norm * x
        read, read_time = objective.network_input(straight, torch.full((2,), start))
        predicted = objective.predicted(model.to_image(model(read, read_time, LABELS).velocity_BKP), straight,
                                        torch.full((2,), start))  # fmt: skip
        mean, std = ancestral.reverse_step(straight, predicted, start, stop)
        assert_same(f"mean of step {place}", mean / next_norm, theirs["mean"], 1e-5)
        if stop > 0:
            assert_same(
                f"log of the deviation of step {place}", (std / next_norm).log(), theirs["log_variance"] / 2, 1e-5
            )


@of_ddpm
@pytest.mark.parametrize("channels", [None, 3], ids=["all channels", "three channels, as published"])
def test_whole_guided_samples_of_ddpm(channels: int | None, public: Public, monkeypatch: pytest.MonkeyPatch) -> None:
    """250 ancestral steps with the learned variance, with the same fresh noise in both."""
    diffusion = public.diffusion.create_diffusion(str(STEPS_OF_DDPM))
    noise, guidance = torch.randn(2, 4, SIDE, SIDE), Guidance(SCALE, channels=channels)
    ours = integrate(public.loaded.model, LABELS, NULL, noise, SamplerSettings(STEPS_OF_DDPM, guidance, sampler="ddpm"))
    generators = ancestral._generators(noise)

    def drawn(like: Tensor) -> Tensor:
        return torch.stack([torch.randn(like.shape[1:], generator=each) for each in generators]).repeat(2, 1, 1, 1)

    # Our path begins at sigma e with sigma = 0.99998, that of the last step, and the public code at e.
    first = noise * diffusion.sqrt_one_minus_alphas_cumprod[-1]
    monkeypatch.setattr(torch, "randn_like", drawn)
    field = public.model.forward_with_cfg if channels else on_all_channels(public.model)
    theirs = diffusion.p_sample_loop(
        field, (4, 4, SIDE, SIDE), first.repeat(2, 1, 1, 1).float(), clip_denoised=False,
        model_kwargs={"y": torch.cat([LABELS, NULL]), "cfg_scale": SCALE}, device="cpu",
    )  # fmt: skip
    what = f"sample of {STEPS_OF_DDPM} guided steps, {channels or 4} channels"
    assert_same(what, ours, theirs[:2], 1e-4)
