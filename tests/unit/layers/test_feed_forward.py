"""The feed-forward slot: one expert is the dense layer, every parameter learns, and logits stay in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.schema import RunConfig
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward, build_feed_forward

ConfigOf = Callable[..., RunConfig]
LayerOf = Callable[..., RoutedFeedForward]
GradientsOf = Callable[..., dict[str, Tensor]]

ROUTERS = ["expert_choice", "token_choice", "switch", "shared_expert"]
routers = pytest.mark.parametrize("name", ROUTERS)


@routers
@pytest.mark.parametrize("expert", ["gelu", "swiglu"])
@pytest.mark.parametrize("group_images", [1, "batch"])
def test_one_expert_with_full_capacity_is_the_dense_layer(
    name: str, expert: Any, group_images: int | str, layer_of: LayerOf
) -> None:
    only = {"expert_choice": {}, "shared_expert": {"top_k": 1, "shared_factor": 0.0}}.get(name, {"top_k": 1})
    layer = layer_of(name=name, num_experts=1, capacity_factor=1.0, expert=expert, group_images=group_images, **only)
    dense = DenseFeedForward(8, layer.experts.w_out_EFD.shape[1], expert)
    dense.w_in.weight.data = layer.experts.w_in_EFD[0]
    dense.w_out.weight.data = layer.experts.w_out_EFD[0].T
    x_BTD, direction_BTD = torch.randn(3, 6, 8, requires_grad=True), torch.randn(3, 6, 8)
    answers = {layer: layer(x_BTD).out_BTD, dense: dense(x_BTD).out_BTD}
    assert_close(answers[layer], answers[dense])
    of_layer = torch.autograd.grad(answers[layer], [x_BTD, *layer.experts.parameters()], direction_BTD)
    of_dense = torch.autograd.grad(answers[dense], [x_BTD, *dense.parameters()], direction_BTD)
    assert_close(of_layer[0], of_dense[0])
    assert_close(of_layer[1][0], of_dense[1])
    assert_close(of_layer[2][0].T, of_dense[2])


@routers
def test_shared_experts_are_added_to_the_routed_ones(name: str, layer_of: LayerOf) -> None:
    if name == "shared_expert":
        layer, x_BTD = layer_of(name=name, num_experts=4), torch.randn(2, 6, 8)
        together, shared = layer(x_BTD).out_BTD, layer.shared
        layer.shared = None
        assert shared is not None
        assert_close(together, layer(x_BTD).out_BTD + shared(x_BTD).out_BTD)
    else:
        assert layer_of(name=name, num_experts=4).shared is None


@routers
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter(
    name: str, training: bool, layer_of: LayerOf, gradients_of: GradientsOf
) -> None:
    layer = layer_of(name=name, num_experts=4, capacity_factor=1.0).train(training)
    for parameter, gradient in gradients_of(layer, torch.randn(4, 16, 8)).items():
        assert gradient.isfinite().all(), parameter
        stack = gradient.flatten(1) if parameter.startswith("experts") else gradient.flatten().unsqueeze(0)
        assert stack.abs().sum(dim=1).gt(0).all(), parameter


@pytest.mark.parametrize("name", ["token_choice", "switch", "shared_expert"])
def test_the_balance_loss_alone_trains_the_router(name: str, layer_of: LayerOf) -> None:
    layer = layer_of(name=name, num_experts=4, balance_loss_weight=0.5)
    loss = layer(torch.randn(4, 16, 8)).auxiliary_loss
    (gradient,) = torch.autograd.grad(loss, [layer.router.weight_DE])
    assert gradient.abs().sum() > 0
    doubled = layer_of(name=name, num_experts=4, balance_loss_weight=1.0)
    doubled.load_state_dict(layer.state_dict())
    torch.manual_seed(1)
    x_BTD = torch.randn(4, 16, 8)
    assert_close(doubled(x_BTD).auxiliary_loss, 2 * layer(x_BTD).auxiliary_loss)


@routers
def test_routing_is_float32_under_bf16_weights_and_inputs(name: str, layer_of: LayerOf) -> None:
    layer = layer_of(name=name, num_experts=4, capacity_factor=1.0).bfloat16()
    x_BTD = torch.randn(4, 16, 8).bfloat16()
    output = layer(x_BTD)
    exact = layer.float()(x_BTD.float()).assignment
    assert output.out_BTD.dtype == torch.bfloat16
    assert output.auxiliary_loss.dtype == output.assignment.weight_M.dtype == torch.float32
    for field in ("logits_NE", "token_M", "weight_M"):
        assert torch.equal(getattr(output.assignment, field), getattr(exact, field)), field


@routers
def test_routing_is_float32_under_autocast(name: str, layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name=name, num_experts=4, capacity_factor=1.0), torch.randn(4, 16, 8)
    expected = layer(x_BTD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x_BTD)
    assert torch.equal(output.assignment.logits_NE, expected.assignment.logits_NE)
    assert_close(output.out_BTD, expected.out_BTD, rtol=0.1, atol=0.05)


def test_the_recorded_logits_carry_no_gradient(layer_of: LayerOf) -> None:
    assert not layer_of(name="expert_choice", num_experts=4)(torch.randn(1, 6, 8)).assignment.logits_NE.requires_grad


def test_a_dense_layer_answers_as_one_expert_that_sees_every_token() -> None:
    output = DenseFeedForward(8, 16)(torch.randn(2, 3, 8))
    assert output.assignment is None
    assert float(output.auxiliary_loss) == 0
    assert output.tokens_per_expert_E.tolist() == [6]
    assert output.experts_per_token_BT.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_sparse_layers_are_where_the_config_says() -> None:
    config = RunConfig.model_validate({"model": {"name": "nano"}, "routing": {"name": "expert_choice"}})
    layers = [build_feed_forward(config, layer) for layer in range(4)]
    assert [type(layer) for layer in layers] == [DenseFeedForward, RoutedFeedForward] * 2
    dense = RunConfig.model_validate({"model": {"name": "nano"}, "routing": {"name": "dense"}})
    assert all(isinstance(build_feed_forward(dense, layer), DenseFeedForward) for layer in range(4))


def test_stacked_experts_start_different_and_in_the_range_of_a_dense_layer(layer_of: LayerOf) -> None:
    experts = layer_of(name="expert_choice", num_experts=4).experts
    bound = (6 / (8 + 16)) ** 0.5
    for weight in experts.parameters():
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
        assert not torch.equal(weight[0], weight[1])
