"""Triton's kernels of a block are the plain operations, gradients included, on fresh random inputs.

On a machine without an accelerator they run in Triton's interpreter, which cuts bfloat16 off instead of rounding it, so
that float16 stands for 16 bits there. Tolerances: 1e-5 of the largest value in float32; with 16 bits no further from
the float64 result than 1.1 times the plain operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.layers.attention import gated_residual, modulate
from experiments.models.dit import DiT
from experiments.training.engine import build_engine, process_group
from experiments.training.objective import forward_loss, to_device
from tests.rounding import held_to_rounding

Device = torch.device
Function = Callable[..., Tensor]
HALF = torch.bfloat16 if torch.accelerator.is_available() else torch.float16
types = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["32 bits", "16 bits"])
tokens = pytest.mark.parametrize("num_tokens", [1, 16, 37])


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    """Other inputs every time; what fails names its seed."""
    print("seed", torch.seed())


def answers(compute: Function, given: Sequence[Tensor], direction: Tensor) -> list[Tensor]:
    """Output and gradients of all that was given."""
    given = [tensor.detach().requires_grad_() for tensor in given]
    out = compute(*given)
    return [out.detach(), *torch.autograd.grad(out, given, direction.to(out.dtype))]


def held_to_plain(fast: Function, plain: Function, given: Sequence[Tensor], direction: Tensor) -> None:
    """See the module."""
    found, other = answers(fast, given, direction), answers(plain, given, direction)
    exact = answers(plain, [tensor.double() for tensor in given], direction.double())
    for ours, theirs, wanted in zip(found, other, exact, strict=True):
        held_to_rounding(ours, wanted, theirs)


@tokens
@types
def test_modulation(num_tokens: int, dtype: torch.dtype, kernels_device: Device) -> None:
    mixed_B6D = torch.randn(3, 6, 40, device=kernels_device, dtype=dtype)
    shift_B1D, scale_B1D, *_ = mixed_B6D.unsqueeze(2).unbind(1)  # stretches of a wider tensor, as in a block
    x_BTD, direction = (torch.randn(3, num_tokens, 40, device=kernels_device, dtype=dtype) * 2 + 1 for _ in range(2))
    held_to_plain(modulate, lambda *given: modulate(*given, fast=False), (x_BTD, shift_B1D, scale_B1D), direction)


@tokens
@types
def test_gated_residual(num_tokens: int, dtype: torch.dtype, kernels_device: Device) -> None:
    gate_B1D = torch.randn(3, 6, 40, device=kernels_device, dtype=dtype).unsqueeze(2).unbind(1)[4]
    x_BTD, y_BTD, direction = (torch.randn(3, num_tokens, 40, device=kernels_device, dtype=dtype) for _ in range(3))
    held_to_plain(
        gated_residual, lambda *given: gated_residual(*given, fast=False), (x_BTD, gate_B1D, y_BTD), direction
    )


@pytest.mark.parametrize("size", [8, 24, 64])
@pytest.mark.parametrize("stretch", [slice(None), slice(3), slice(3, 6)], ids=["all", "keys", "values"])
@types
def test_the_norm_of_heads(size: int, stretch: slice, dtype: torch.dtype, kernels_device: Device) -> None:
    from experiments.layers import block_kernels as kernels

    wide_BTHK = torch.randn(2, 60, 6, size, device=kernels_device, dtype=dtype) * 3 + 1
    weight_K = torch.randn(size, device=kernels_device, dtype=dtype)
    x_BTHK = wide_BTHK[:, :, stretch]
    direction = torch.randn(x_BTHK.transpose(1, 2).shape, device=kernels_device, dtype=dtype).transpose(1, 2)

    def compute(take: Function) -> Function:
        return lambda wide, weight: take(wide[:, :, stretch], weight)

    held_to_plain(
        compute(lambda x, weight: kernels.norm_heads(x, weight, 1e-5)),
        compute(lambda x, weight: F.layer_norm(x, (size,), weight, None, 1e-5)),
        (wide_BTHK, weight_K),
        direction,
    )


def test_a_model_with_kernels_is_its_reference(kernels_device: Device) -> None:
    """Velocity and every gradient in float32, with all weights drawn, so that nothing is zero."""
    settings = {"model": {"name": "nano", "width": 32, "num_layers": 2}, "routing": {"name": "expert_choice"}}
    models = []
    for implementation in ("fast", "reference"):
        torch.manual_seed(0)
        config = RunConfig.model_validate({**settings, "train": {"implementation": implementation}})
        model = DiT(config).to(kernels_device)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        models.append(model)
    data = config.data
    image_BCHW = torch.randn(2, data.channels, data.image_size, data.image_size, device=kernels_device)
    caption_BL = torch.randint(1, 60, (2, data.caption_length), device=kernels_device)
    found = []
    for model in models:
        velocity_BKP = model(image_BCHW, torch.tensor([0.2, 0.7], device=kernels_device), caption_BL).velocity_BKP
        velocity_BKP.square().mean().backward()
        found.append({"velocity": velocity_BKP.detach(), **{n: p.grad for n, p in model.named_parameters()}})
    for name, wanted in found[1].items():
        assert_close(found[0][name], wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()), msg=name)


def test_steps_with_kernels_are_those_of_the_reference(kernels_device: Device, tmp_path: Path) -> None:
    """With ZeRO-3, which takes weights away between two calls of a layer."""
    losses = []
    for implementation in ("fast", "reference"):
        config = load_config(["model=nano", "train.batch_images=2", "parallel.zero_stage=3", "data.image_size=16",
                              f"train.implementation={implementation}"])  # fmt: skip
        with process_group(tmp_path / implementation):
            engine = build_engine(config, "fp32")
            engine.set_learning_rate(1e-3)
            batch = to_device(next(TrainStream(config).iterate(0)), engine.device)
            for _ in range(2):
                loss_B, output = forward_loss(engine.deepspeed, batch, config)
                engine.deepspeed.backward(loss_B.mean() + output.auxiliary_loss)
                engine.deepspeed.step()
            losses.append(float(loss_B.detach().mean()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
