"""Triton's kernels are the plain operations, gradients included, on fresh random inputs.

On a machine without an accelerator they run in Triton's interpreter, which cuts bfloat16 off instead of rounding it, so
that float16 stands for 16 bits there. Tolerances: 1e-5 of the largest value in float32; with 16 bits no further from
the float64 result than 1.1 times the plain operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.accelerated import has_kernels
from experiments.layers.dispatch import Places, combine, gather
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.pieces import Activation, activate
from experiments.routing.logits import _NarrowLogits
from tests.rounding import held_to_rounding

Device = torch.device
HALF = torch.bfloat16 if torch.accelerator.is_available() else torch.float16
widths = pytest.mark.parametrize("width", [1, 24, 64, 130])
types = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["32 bits", "16 bits"])


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    """Other inputs every time; what fails names its seed."""
    print("seed", torch.seed())


def places_and_rows(width: int, dtype: torch.dtype, device: Device) -> tuple[Places, Tensor, Tensor]:
    """Nine tokens, of which some are in no slot and some in several of 15."""
    token_S = torch.randint(0, 9, (15,), device=device)
    rows_SD = torch.randn(15, width, device=device, dtype=dtype)
    return Places.of(token_S, 9), rows_SD, torch.rand(15, device=device)


@widths
@types
def test_rows_are_summed_by_token(width: int, dtype: torch.dtype, kernels_device: Device) -> None:
    from experiments.layers import routed_kernels as kernels

    places, rows_SD, weight_S = places_and_rows(width, dtype, kernels_device)
    for weight in (None, weight_S):
        found_ND = kernels.sum_rows(rows_SD, places.slot_S, places.first_N, weight)
        weighted_SD = rows_SD.double() * (1 if weight is None else weight.double().unsqueeze(1))
        exact_ND = torch.zeros(9, width, device=kernels_device, dtype=torch.float64)
        exact_ND.index_add_(0, places.token_S, weighted_SD)
        held_to_rounding(found_ND, exact_ND, exact_ND.to(dtype))


@widths
@types
def test_the_gradients_of_the_sum_are_those_of_autograd(width: int, dtype: torch.dtype, kernels_device: Device) -> None:
    from experiments.layers import routed_kernels as kernels

    places, y_SD, weight_S = places_and_rows(width, dtype, kernels_device)
    of_out_ND = torch.randn(9, width, device=kernels_device, dtype=dtype)
    of_y_SD, of_weight_S = kernels.combine_gradients(of_out_ND, places.token_S, y_SD, weight_S)
    y, weight = y_SD.double().requires_grad_(), weight_S.double().requires_grad_()
    out_ND = torch.zeros(9, width, device=kernels_device, dtype=torch.float64)
    out_ND = out_ND.index_add(0, places.token_S, y * weight.unsqueeze(1))
    exact_of_y, exact_of_weight = torch.autograd.grad(out_ND, (y, weight), of_out_ND.double())
    held_to_rounding(of_y_SD, exact_of_y, exact_of_y.to(dtype))
    held_to_rounding(of_weight_S, exact_of_weight, exact_of_weight.float())


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@types
def test_the_activation_and_its_gradient_are_those_of_autograd(
    activation: Activation, dtype: torch.dtype, kernels_device: Device
) -> None:
    from experiments.layers import routed_kernels as kernels

    rows = 14 if activation == "swiglu" else 7
    hidden_EFP = 3 * torch.randn(2, rows, 5, device=kernels_device, dtype=dtype)
    of_acted_EFP = torch.randn(2, 7, 5, device=kernels_device, dtype=dtype)
    wanted = []
    for kind in (torch.float64, dtype):
        hidden = hidden_EFP.to(kind).requires_grad_()
        acted = activate(hidden, activation, dim=1)
        wanted.append((acted.detach(), *torch.autograd.grad(acted, hidden, of_acted_EFP.to(kind))))
    gated = activation == "swiglu"
    alone_EFP = kernels.activation(hidden_EFP, gated)
    of_acted = of_acted_EFP.clone()
    of_hidden = torch.empty_like(hidden_EFP) if gated else of_acted
    acted = kernels.activation_with_gradient(hidden_EFP, of_acted, of_hidden, gated)
    held_to_rounding(alone_EFP, *(each[0] for each in wanted))
    for ours, exact, plain in zip((acted, of_hidden), *wanted, strict=True):
        held_to_rounding(ours, exact, plain)


@pytest.mark.parametrize(
    "routing",
    [
        {"name": "expert_choice"},
        {"name": "expert_choice", "group_images": "batch", "expert": "swiglu"},
        {"name": "token_choice", "capacity_factor": 1.0},
        {"name": "shared_expert"},
    ],
    ids=["expert_choice", "by_batch_swiglu", "token_choice", "shared_expert"],
)
@types
def test_the_layer_with_kernels_is_its_reference(
    routing: dict[str, Any],
    dtype: torch.dtype,
    layer_of: Callable[..., RoutedFeedForward],
    gradients_of: Callable[..., dict[str, Tensor]],
    kernels_device: Device,
) -> None:
    layer = layer_of(width=16, num_experts=4, **routing).to(kernels_device, dtype)
    x_BTD = torch.randn(4, 16, 16, device=kernels_device, dtype=dtype)
    answers = []
    for kind, fast in ((torch.float64, False), (dtype, True), (dtype, False)):
        layer.to(kind if kind != torch.float64 else torch.float32)
        given = x_BTD.to(kind if kind != torch.float64 else torch.float32)
        layer.fast = fast
        answers.append({"out": layer(given).out_BTD.detach(), **gradients_of(layer, given)})
    exact, found, plain = answers
    for name, wanted in exact.items():
        lost, allowed = (float((each[name].float() - wanted).norm()) for each in (found, plain))
        # So few numbers: which way each is rounded is chance. The parts are held closer, above and below.
        assert lost <= 2 * allowed + 1e-5 * float(wanted.norm()), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_lose_nothing_but_the_last_rounding(dtype: torch.dtype) -> None:
    x_ND, weight_DE = torch.randn(512, 64).to(dtype), torch.randn(64, 8).to(dtype)
    direction_NE = torch.randn(512, 8)
    answers = []
    for compute, kind in ((_NarrowLogits.apply, dtype), (lambda x, w: x.float() @ w.float(), dtype),
                          (torch.matmul, torch.float64)):  # fmt: skip
        x, weight = (tensor.to(kind, copy=True).requires_grad_() for tensor in (x_ND, weight_DE))
        logits = compute(x, weight)
        gradients = torch.autograd.grad(logits, (x, weight), direction_NE.to(logits.dtype))
        answers.append((logits.detach(), *gradients))
    for ours, plain, exact in zip(*answers, strict=True):
        held_to_rounding(ours, exact, plain)


def test_a_token_in_no_slot_gets_zero_and_no_gradient(kernels_device: Device) -> None:
    x_ND = torch.randn(4, 3, device=kernels_device, requires_grad=True)
    places = Places.of(torch.tensor([2, 0, 2, 2], device=kernels_device), 4)
    weight_S = torch.tensor([1.0, 2.0, 3.0, 4.0], device=kernels_device)
    combine(gather(x_ND, places), weight_S, places).sum().backward()
    factor = torch.tensor([[2.0], [0.0], [8.0], [0.0]], device=kernels_device)
    assert_close(x_ND.grad, factor.expand(4, 3))


def test_a_processor_and_wide_types_take_plain_operations() -> None:
    assert not has_kernels(torch.zeros(2))
    assert not has_kernels(torch.zeros(2, dtype=torch.float64))
    assert not has_kernels(torch.zeros(2, device="meta"))
