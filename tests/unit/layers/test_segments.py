"""Experts over segments of different length are the plain form: outputs, gradients, bits, and no more work than rows.

Tolerances: 1e-12 relative in float64; in bfloat16 no further from float64 than 1.1 times the plain form.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from experiments.layers.pieces import NO_BIASES, Activation, Biases
from experiments.layers.segments import (
    feed_forward_in_segments,
    grouped_feed_forward,
    plain_segments,
    slot_counts,
    takes_grouped_products,
)
from tests.oracles import feed_forward

WIDTH, HIDDEN = 16, 24
LOADS = {"uneven": [3, 0, 1, 7, 2], "all on one": [0, 0, 13, 0, 0], "even": [2, 2, 2, 2, 2], "nobody": [0] * 5}
activations = pytest.mark.parametrize("activation", ["gelu", "swiglu"])
loads = pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
biases = pytest.mark.parametrize("biased", [False, True], ids=["", "biases"])
FeedForward = Callable[[Tensor, Tensor, Tensor, Tensor, Activation, Biases], Tensor]


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    """Other inputs every time; what fails names its seed."""
    print("seed", torch.seed())


def inputs(
    activation: Activation, num_slots: int, dtype: torch.dtype = torch.float64, biased: bool = False
) -> list[Tensor]:
    """Slots and both weights of five experts, and both biases where there are any."""
    rows = HIDDEN * (2 if activation == "swiglu" else 1)
    shapes = [(num_slots, WIDTH), (5, rows, WIDTH), (5, HIDDEN, WIDTH), *([(5, rows), (5, WIDTH)] if biased else [])]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def computed(compute: FeedForward, slots_E: Tensor, given: list[Tensor], activation: Activation) -> Tensor:
    """The output for what `inputs` gives."""
    x_MD, w_in_EFD, w_out_EFD, *of_experts = given
    of_all = (of_experts[0], of_experts[1]) if of_experts else NO_BIASES
    return compute(x_MD, slots_E, w_in_EFD, w_out_EFD, activation, of_all)


def answers(compute: FeedForward, load: list[int], given: list[Tensor], activation: Activation) -> list[Tensor]:
    """Output and gradients."""
    y_MD = computed(compute, torch.tensor(load), given, activation)
    direction_MD = torch.linspace(-1, 1, y_MD.numel(), dtype=torch.float64).view_as(y_MD).to(y_MD.dtype)
    return [y_MD.detach(), *torch.autograd.grad(y_MD, given, direction_MD)]


@activations
@biases
@loads
def test_segments_give_the_plain_numbers(activation: Activation, load: list[int], biased: bool) -> None:
    given = inputs(activation, sum(load), biased=biased)
    found = answers(feed_forward_in_segments, load, given, activation)
    for ours, plain in zip(found, answers(plain_segments, load, given, activation), strict=True):
        assert_close(ours, plain, rtol=0, atol=1e-12 * float(plain.abs().sum()))
    with torch.no_grad():
        without = computed(feed_forward_in_segments, torch.tensor(load), given, activation)
    assert_close(without, found[0], rtol=0, atol=1e-12 * float(found[0].abs().sum()))


@activations
def test_every_slot_goes_through_its_own_expert(activation: Activation) -> None:
    load = LOADS["uneven"]
    x_MD, *weights = inputs(activation, sum(load))
    y_MD = feed_forward_in_segments(x_MD, torch.tensor(load), *weights, activation)
    slot = 0
    for expert, size in enumerate(load):
        for _ in range(size):
            assert_close(y_MD[slot], feed_forward(x_MD[slot], [each[expert] for each in weights], activation))
            slot += 1
    assert slot == len(x_MD)


@activations
@biases
def test_segments_have_the_gradients_of_finite_differences(activation: Activation, biased: bool) -> None:
    given = inputs(activation, 4, biased=biased)
    slots_E = torch.tensor([1, 0, 2, 0, 1])
    assert torch.autograd.gradcheck(
        lambda *given: computed(feed_forward_in_segments, slots_E, [*given], activation), given
    )


@activations
@biases
def test_an_expert_without_tokens_has_gradients_of_zero(activation: Activation, biased: bool) -> None:
    load = LOADS["uneven"]
    given = inputs(activation, sum(load), biased=biased)
    _, _, *gradients = answers(feed_forward_in_segments, load, given, activation)
    for gradient_E in gradients:
        assert [bool(gradient.any()) for gradient in gradient_E] == [size > 0 for size in load]


@activations
@biases
def test_in_bf16_segments_are_as_close_to_exact_as_the_plain_form(activation: Activation, biased: bool) -> None:
    load = [100, 0, 20, 70, 66]
    given = inputs(activation, sum(load), torch.bfloat16, biased)
    exact = answers(plain_segments, load, [each.detach().double().requires_grad_() for each in given], activation)
    ours, plain = (answers(form, load, given, activation) for form in (feed_forward_in_segments, plain_segments))
    for mine, other, wanted in zip(ours, plain, exact, strict=True):
        assert (mine - wanted).norm() <= 1.1 * (other - wanted).norm() + 1e-6 * wanted.norm()


@activations
@biases
@loads
def test_what_is_computed_is_what_is_routed(activation: Activation, load: list[int], biased: bool) -> None:
    """Forward, and twice as much backward, whatever the fullest expert has; biases count as no FLOPs."""
    for compute in (feed_forward_in_segments, plain_segments):
        with FlopCounterMode(display=False) as counter:
            answers(compute, load, inputs(activation, sum(load), torch.float32, biased), activation)
        matrices = 3 if activation == "swiglu" else 2
        assert counter.get_total_flops() == 3 * 2 * matrices * sum(load) * WIDTH * HIDDEN


@activations
def test_the_same_bits_every_time(activation: Activation) -> None:
    load = LOADS["uneven"]
    given = inputs(activation, sum(load), torch.float32)
    first, second = (answers(feed_forward_in_segments, load, given, activation) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@activations
@biases
@pytest.mark.parametrize("load", [LOADS["uneven"], LOADS["even"], LOADS["all on one"]])
def test_grouped_products_give_the_plain_numbers(activation: Activation, load: list[int], biased: bool) -> None:
    """On a processor, where torch has them in bfloat16 too; an accelerator takes them instead of the loop.

    With biases a product is rounded once more, before its bias is added.
    """
    given = inputs(activation, sum(load), torch.bfloat16, biased)
    exact = answers(plain_segments, load, [each.detach().double().requires_grad_() for each in given], activation)
    grouped, plain = (answers(form, load, given, activation) for form in (grouped_feed_forward, plain_segments))
    for mine, other, wanted in zip(grouped, plain, exact, strict=True):
        assert (mine - wanted).norm() <= (3 if biased else 1.2) * (other - wanted).norm() + 1e-6 * wanted.norm()


def test_a_processor_takes_the_loop() -> None:
    x_MD, _, w_out_EFD = inputs("gelu", 4, torch.bfloat16)
    assert not takes_grouped_products(x_MD, w_out_EFD)


def test_a_simulated_step_has_even_loads_of_the_same_sum() -> None:
    assert slot_counts(torch.tensor([5, 0, 2]), 7) == [5, 0, 2]
    with FakeTensorMode():
        assert slot_counts(torch.zeros(3, dtype=torch.int64), 8) == [3, 3, 2]
