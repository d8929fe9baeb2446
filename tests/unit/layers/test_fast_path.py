"""The fast path is the reference: outputs and gradients on fresh random inputs, the same every time, in bf16 too.

Tolerances: 1e-12 relative in float64, where both sum the same numbers in another order; 1e-5 of the largest value in
float32. In bfloat16 the fast path is no further from the float64 result than 1.1 times the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.routers import choosing_names
from experiments.config.schema import RunConfig
from experiments.layers import dispatch
from experiments.layers.dispatch import Places, combine, gather
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward

LayerOf = Callable[..., RoutedFeedForward]
GradientsOf = Callable[..., dict[str, Tensor]]
CASES: list[dict[str, Any]] = [
    *({"name": name} for name in choosing_names()),
    {"name": "expert_choice", "group_images": "batch", "expert": "swiglu", "gating": "sigmoid"},
    {"name": "token_choice", "capacity_factor": 1.0},
    {"name": "shared_expert", "top_k": 1, "expert": "gelu", "shared_factor": 0.0},
    {"name": "token_choice", "top_k": 3, "capacity_factor": None, "group_images": 2},
    {"name": "shared_expert", "capacity_factor": 1.0},
    {"name": "expert_choice", "expert_bias": True},
    {"name": "shared_expert", "expert_bias": True},
    {"name": "token_choice", "capacity_factor": 1.0, "expert": "swiglu", "expert_bias": True},
]
cases = pytest.mark.parametrize("routing", CASES, ids=[" ".join(map(str, case.values())) for case in CASES])


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    """Other inputs every time; what fails names its seed."""
    print("seed", torch.seed())


def answers(layer: RoutedFeedForward, x_BTD: Tensor, fast: bool, gradients_of: GradientsOf) -> dict[str, Tensor]:
    """Output and gradients of one implementation, as float64."""
    layer.fast = fast
    named = {"out": layer(x_BTD).out_BTD.detach(), **gradients_of(layer, x_BTD)}
    return {name: tensor.double() for name, tensor in named.items()}


@cases
@pytest.mark.parametrize("training", [True, False])
def test_fast_and_reference_agree_to_the_last_digits(
    routing: dict[str, Any], training: bool, layer_of: LayerOf, gradients_of: GradientsOf
) -> None:
    layer, x_BTD = layer_of(num_experts=4, **routing).train(training), torch.randn(4, 16, 8, dtype=torch.float64)
    layer.experts.double()
    for part in (layer.shared, layer.unconditional):
        if part is not None:
            part.double()
    fast, reference = (answers(layer, x_BTD, choice, gradients_of) for choice in (True, False))
    assert fast.keys() == reference.keys()
    for name, expected in reference.items():  # the router is float32 by contract
        tolerance = 1e-5 if "router" in name or name == "x" else 1e-12
        assert_close(fast[name], expected, rtol=0, atol=tolerance * float(expected.abs().max()), msg=name)


@cases
def test_fast_and_reference_agree_in_float32(
    routing: dict[str, Any], layer_of: LayerOf, gradients_of: GradientsOf
) -> None:
    layer, x_BTD = layer_of(num_experts=4, **routing), torch.randn(4, 16, 8)
    fast, reference = (answers(layer, x_BTD, choice, gradients_of) for choice in (True, False))
    for name, expected in reference.items():
        assert_close(fast[name], expected, rtol=0, atol=1e-5 * float(expected.abs().max()), msg=name)


@cases
def test_in_bf16_the_fast_path_is_as_close_to_exact_as_the_reference(
    routing: dict[str, Any], layer_of: LayerOf, gradients_of: GradientsOf
) -> None:
    layer, x_BTD = layer_of(width=16, num_experts=4, **routing).bfloat16(), torch.randn(8, 32, 16).bfloat16()
    fast, reference = (answers(layer, x_BTD, choice, gradients_of) for choice in (True, False))
    exact = answers(layer.float(), x_BTD.float(), False, gradients_of)
    for name, expected in exact.items():
        error = {key: float((found[name] - expected).norm()) for key, found in (("f", fast), ("r", reference))}
        assert error["f"] <= 1.1 * error["r"] + 1e-6 * float(expected.norm()), name


def test_a_token_in_no_slot_gets_zero_and_no_gradient() -> None:
    x_ND = torch.randn(4, 3, requires_grad=True)
    places = Places.of(torch.tensor([2, 0, 2, 2]), 4)
    out_ND = combine(gather(x_ND, places), torch.tensor([1.0, 2.0, 3.0, 4.0]), places)
    out_ND.sum().backward()
    assert_close(out_ND, torch.tensor([[2.0], [0.0], [8.0], [0.0]]) * x_ND)
    assert_close(x_ND.grad, torch.tensor([[2.0], [0.0], [8.0], [0.0]]).expand(4, 3))


@pytest.mark.parametrize("elements", [1, 10, 2**16])
def test_the_fast_path_has_the_gradients_of_finite_differences(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "STRETCH_ELEMENTS", elements)
    places = Places.of(torch.randint(0, 5, (12,)), 5)
    x_ND = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weight_S = torch.rand(12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: combine(gather(x, places) ** 2, weight, places), (x_ND, weight_S))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_16_bits_are_summed_with_whole_gates(dtype: torch.dtype) -> None:
    """Nothing is lost but the last rounding; gates rounded to 16 bits would lose as much again."""
    places, weight_S = Places.of(torch.randint(0, 256, (512,)), 256), torch.rand(512)
    y_SD = torch.randn(512, 64, dtype=dtype)
    exact_ND = combine(y_SD.double(), weight_S.double(), places)
    lost = [float((each.double() - exact_ND).norm()) for each in (combine(y_SD, weight_S, places), exact_ND.to(dtype))]
    assert lost[0] <= 1.02 * lost[1]


@cases
def test_the_fast_path_gives_the_same_bits_every_time(
    routing: dict[str, Any], layer_of: LayerOf, gradients_of: GradientsOf
) -> None:
    layer, x_BTD = layer_of(num_experts=4, **routing), torch.randn(4, 16, 8)
    first, second = (answers(layer, x_BTD, True, gradients_of) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("implementation", "fast"), [("fast", True), ("reference", False)])
def test_the_setting_chooses_the_path(implementation: str, fast: bool) -> None:
    train = {"implementation": implementation}
    config = RunConfig.model_validate({"routing": {"name": "expert_choice"}, "train": train})
    layer = build_feed_forward(config, config.sparse_layer_indices[0])
    assert isinstance(layer, RoutedFeedForward)
    assert layer.fast is fast
