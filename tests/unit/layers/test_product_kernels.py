"""Products with the activation inside are those of plain operations, at sizes that no tile divides.

As in `test_routed_kernels.py` they run in Triton's interpreter where there is no accelerator, on fresh random inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from experiments.config.overrides import load_config
from experiments.layers.experts import plain_feed_forward
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward
from experiments.layers.pieces import Activation, activate, feed_forward_in_pieces
from tests.rounding import held_to_rounding

Device = torch.device
HALF = torch.bfloat16 if torch.accelerator.is_available() else torch.float16
types = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["32 bits", "16 bits"])
activations = pytest.mark.parametrize("activation", ["gelu", "swiglu"])
sizes = pytest.mark.parametrize(
    ("hidden", "slots", "width"),
    [(40, 30, 20), (130, 140, 70), (1100, 3, 16)],
    ids=["one tile", "edges", "a second band"],
)


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    """Other inputs every time; what fails names its seed."""
    print("seed", torch.seed())


def experts_of(
    hidden: int, slots: int, width: int, activation: Activation, dtype: torch.dtype, device: Device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inputs, both matrices and both biases of three experts."""
    rows = 2 * hidden if activation == "swiglu" else hidden
    shapes = ((3, slots, width), (3, rows, width), (3, hidden, width), (3, rows), (3, width))
    x_EPD, w_in_ERD, w_out_EFD, b_in_ER, b_out_ED = (torch.randn(*shape, device=device).to(dtype) for shape in shapes)
    return x_EPD, w_in_ERD / width**0.5, w_out_EFD / hidden**0.5, b_in_ER, b_out_ED


@sizes
@activations
@types
def test_both_kernels_are_a_product_and_the_activation(
    hidden: int,
    slots: int,
    width: int,
    activation: Activation,
    dtype: torch.dtype,
    kernels_device: Device,
) -> None:
    from experiments.layers import product_kernels as kernels

    x_EPD, w_in_ERD, w_out_EFD, b_in_ER, _ = experts_of(hidden, slots, width, activation, dtype, kernels_device)
    grad_y_EPD, gated = torch.randn_like(x_EPD), activation == "swiglu"
    hidden_ERP = x_EPD.new_empty(*w_in_ERD.shape[:2], slots)
    acted_EFP = kernels.hidden_layer(w_in_ERD, x_EPD, b_in_ER, hidden_ERP, gated)
    grad_hidden_ERP = torch.empty_like(hidden_ERP)
    again_EFP = kernels.hidden_gradient(w_out_EFD, grad_y_EPD, hidden_ERP, grad_hidden_ERP, gated)
    wanted = []
    for kind in (torch.float64, dtype):
        x, w_in, w_out, b_in, grad_y = (each.to(kind) for each in (x_EPD, w_in_ERD, w_out_EFD, b_in_ER, grad_y_EPD))
        product = torch.baddbmm(b_in.unsqueeze(2), w_in, x.mT)
        given = hidden_ERP.to(kind, copy=True).requires_grad_()  # the rounded one, from which both kernels compute
        acted = activate(given, activation, dim=1)
        wanted.append((product, acted.detach(), *torch.autograd.grad(acted, given, w_out @ grad_y.mT)))
    assert torch.equal(acted_EFP, again_EFP)
    for found, exact, plain in zip((hidden_ERP, acted_EFP, grad_hidden_ERP), *wanted, strict=True):
        held_to_rounding(found, exact, plain)


@pytest.mark.parametrize("has_biases", [True, False])
@activations
def test_experts_with_the_activation_inside_are_the_plain_ones(
    activation: Activation, has_biases: bool, kernels_device: Device
) -> None:
    given = experts_of(40, 20, 16, activation, torch.float32, kernels_device)
    answers = []
    forms: tuple[tuple[Callable[..., Tensor], torch.dtype], ...] = (
        (plain_feed_forward, torch.float64),
        (partial(feed_forward_in_pieces, fused=True), torch.float32),
    )
    for compute, kind in forms:
        inputs = [each.to(kind).requires_grad_() for each in given[: 5 if has_biases else 3]]
        biases = (inputs[3], inputs[4]) if has_biases else (None, None)
        y_EPD = compute(*inputs[:3], activation, biases)
        answers.append((y_EPD.detach(), *torch.autograd.grad(y_EPD.square().sum(), inputs)))
    for exact, found in zip(*answers, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


def test_the_setting_reaches_the_kernels(
    kernels_device: Device, monkeypatch: pytest.MonkeyPatch, gradients_of: Callable[..., dict[str, Tensor]]
) -> None:
    """Equal loads take the kernels once in each direction; a layer without the setting never does."""
    from experiments.layers import product_kernels as kernels

    called: list[str] = []

    def noted(name: str, plain: Callable[..., Tensor], *given: Tensor) -> Tensor:
        called.append(name)
        return plain(*given)

    for name in ("hidden_layer", "hidden_gradient"):
        monkeypatch.setattr(kernels, name, partial(noted, name, getattr(kernels, name)))
    found = {}
    for how in ("fused", "fast"):
        config = load_config(["model=nano", "routing=expert_choice", f"train.implementation={how}"])
        torch.manual_seed(1)  # the router's first weights and the tokens
        layer = build_feed_forward(config, config.sparse_layer_indices[0]).to(kernels_device)
        assert isinstance(layer, RoutedFeedForward)
        x_BTD = torch.randn(4, 16, config.model.width, device=kernels_device)
        found[how] = gradients_of(layer, x_BTD)
    assert called == ["hidden_layer", "hidden_gradient", "hidden_gradient"], "the backward pass takes halves"
    for name, wanted in found["fast"].items():
        torch.testing.assert_close(found["fused"][name], wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
