"""The feed-forward in pieces is the plain one: outputs and gradients on fresh random inputs, for pieces of any size.

Tolerances: 1e-12 relative in float64; in bfloat16 no further from float64 than 1.1 times the plain form.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.layers import pieces
from experiments.layers.experts import StackedExperts, plain_feed_forward
from experiments.layers.pieces import NO_BIASES, Activation, Biases, activate, feed_forward_in_pieces

NUM_EXPERTS, NUM_SLOTS, WIDTH, HIDDEN = 5, 6, 4, 8
activations = pytest.mark.parametrize("activation", ["gelu", "swiglu"])
biases = pytest.mark.parametrize("biased", [False, True], ids=["", "biases"])
experts_in_a_piece = pytest.mark.parametrize("size", [0, 1, 2, 5, 9])
FeedForward = Callable[[Tensor, Tensor, Tensor, Activation, Biases], Tensor]


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    """Other inputs every time; what fails names its seed."""
    print("seed", torch.seed())


def inputs(
    activation: Activation, dtype: torch.dtype = torch.float64, num_slots: int = NUM_SLOTS, biased: bool = False
) -> list[Tensor]:
    """Slots and both weights, and both biases where there are any."""
    rows = HIDDEN * (2 if activation == "swiglu" else 1)
    shapes = [(NUM_EXPERTS, num_slots, WIDTH), (NUM_EXPERTS, rows, WIDTH), (NUM_EXPERTS, HIDDEN, WIDTH)]
    of_biases = [(NUM_EXPERTS, rows), (NUM_EXPERTS, WIDTH)] if biased else []
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in [*shapes, *of_biases]]


def computed(compute: FeedForward, given: list[Tensor], activation: Activation) -> Tensor:
    """The output for what `inputs` gives."""
    x_EPD, w_in_EFD, w_out_EFD, *of_experts = given
    return compute(x_EPD, w_in_EFD, w_out_EFD, activation, (of_experts[0], of_experts[1]) if of_experts else NO_BIASES)


def answers(compute: FeedForward, given: list[Tensor], activation: Activation, direction: Tensor) -> list[Tensor]:
    """Output and gradients."""
    y_EPD = computed(compute, given, activation)
    return [y_EPD.detach(), *torch.autograd.grad(y_EPD, given, direction.to(y_EPD.dtype))]


@activations
@biases
@experts_in_a_piece
def test_pieces_of_any_size_give_the_plain_numbers(
    activation: Activation, size: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(activation, biased=biased)
    monkeypatch.setattr(pieces, "PIECE_BYTES", size * NUM_SLOTS * given[1].shape[1] * 8)
    direction = torch.randn(WIDTH, NUM_SLOTS, NUM_EXPERTS, dtype=torch.float64).mT.mT.permute(2, 1, 0)  # not contiguous
    found = answers(feed_forward_in_pieces, given, activation, direction)
    for ours, plain in zip(found, answers(plain_feed_forward, given, activation, direction), strict=True):
        assert_close(ours, plain, rtol=0, atol=1e-12 * float(plain.abs().max()))
    with torch.no_grad():
        assert_close(computed(feed_forward_in_pieces, given, activation), found[0], rtol=0, atol=1e-12)


@activations
@biases
def test_pieces_have_the_gradients_of_finite_differences(
    activation: Activation, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1)
    given = inputs(activation, biased=biased)
    assert torch.autograd.gradcheck(lambda *given: computed(feed_forward_in_pieces, [*given], activation), given)


@activations
@biases
def test_in_bf16_pieces_are_as_close_to_exact_as_the_plain_form(activation: Activation, biased: bool) -> None:
    given = inputs(activation, torch.bfloat16, num_slots=64, biased=biased)
    direction = torch.randn(NUM_EXPERTS, 64, WIDTH)
    exact = answers(plain_feed_forward, [each.detach().double().requires_grad_() for each in given], activation,
                    direction.bfloat16().double())  # fmt: skip
    ours, plain = (answers(form, given, activation, direction) for form in (feed_forward_in_pieces, plain_feed_forward))
    for mine, other, wanted in zip(ours, plain, exact, strict=True):
        assert (mine - wanted).norm() <= 1.1 * (other - wanted).norm() + 1e-6 * wanted.norm()


def test_experts_without_slots_have_no_gradient() -> None:
    given = inputs("gelu", num_slots=0)
    found = answers(feed_forward_in_pieces, given, "gelu", torch.randn(NUM_EXPERTS, 0, WIDTH))
    assert found[0].shape == (NUM_EXPERTS, 0, WIDTH)
    assert not any(bool(gradient.any()) for gradient in found[2:])


@activations
@pytest.mark.parametrize("slots_E", [None, torch.tensor([9, 0, 1, 15, 5])], ids=["even", "uneven"])
def test_the_activation_is_not_kept_and_the_reference_keeps_it(activation: Activation, slots_E: Tensor | None) -> None:
    experts, kept = StackedExperts(NUM_EXPERTS, WIDTH, HIDDEN, activation), {}
    for fast in (True, False):
        x_MD, sizes = torch.randn(NUM_EXPERTS * NUM_SLOTS, WIDTH, requires_grad=True), {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            experts(x_MD, slots_E, fast)
        kept[fast] = sum(sizes.values())
    acted = activate(torch.empty(NUM_EXPERTS, NUM_SLOTS, HIDDEN * (2 if activation == "swiglu" else 1)), activation)
    assert kept[False] >= kept[True] + acted.nbytes
