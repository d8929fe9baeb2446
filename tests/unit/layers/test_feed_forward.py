"""The feed-forward slot: one expert is the dense layer, every parameter learns, and logits stay in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.routers import ROUTERS, choosing_names
from experiments.config.schema import RunConfig
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward, build_feed_forward

ConfigOf = Callable[..., RunConfig]
LayerOf = Callable[..., RoutedFeedForward]
GradientsOf = Callable[..., dict[str, Tensor]]

routers = pytest.mark.parametrize("name", choosing_names())


@routers
def test_shared_experts_are_added_to_the_routed_ones(name: str, layer_of: LayerOf) -> None:
    if ROUTERS[name].shared_factor is not None:
        layer, x_BTD = layer_of(name=name, num_experts=4), torch.randn(2, 6, 8)
        together, shared = layer(x_BTD).out_BTD, layer.shared
        layer.shared = None
        assert shared is not None
        assert_close(together, layer(x_BTD).out_BTD + shared(x_BTD).out_BTD)
    else:
        assert layer_of(name=name, num_experts=4).shared is None


@pytest.mark.parametrize("name", [name for name, row in ROUTERS.items() if row.balance_loss_weight])
def test_the_balance_loss_alone_trains_the_router(name: str, layer_of: LayerOf) -> None:
    layer = layer_of(name=name, num_experts=4, balance_loss_weight=0.5, z_loss_weight=0.0)
    loss = layer(torch.randn(4, 16, 8)).auxiliary_loss
    (gradient,) = torch.autograd.grad(loss, [layer.router.weight_DE])
    assert gradient.abs().sum() > 0
    doubled = layer_of(name=name, num_experts=4, balance_loss_weight=1.0, z_loss_weight=0.0)
    doubled.load_state_dict(layer.state_dict())
    torch.manual_seed(1)
    x_BTD = torch.randn(4, 16, 8)
    assert_close(doubled(x_BTD).auxiliary_loss, 2 * layer(x_BTD).auxiliary_loss)


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


@pytest.mark.parametrize(
    ("placement", "routed"), [("alternate", {1, 3}), ("all", {0, 1, 2, 3}), ("1:-1", {1, 2}), ("0,3", {0, 3})]
)
def test_sparse_layers_are_where_the_config_says(placement: str, routed: set[int]) -> None:
    model = {"name": "nano", "sparse_layers": placement}
    config = RunConfig.model_validate({"model": model, "routing": {"name": "expert_choice"}})
    layers = [build_feed_forward(config, layer) for layer in range(4)]
    assert [type(layer) for layer in layers] == [
        RoutedFeedForward if layer in routed else DenseFeedForward for layer in range(4)
    ]
    dense = RunConfig.model_validate({"model": {"name": "nano"}, "routing": {"name": "dense"}})
    assert all(isinstance(build_feed_forward(dense, layer), DenseFeedForward) for layer in range(4))


@routers
def test_with_biases_a_layer_starts_as_the_one_without(name: str, config_of: ConfigOf) -> None:
    layers = []
    for expert_bias in (False, True):
        torch.manual_seed(1)
        layers.append(build_feed_forward(config_of(name=name, num_experts=4, expert_bias=expert_bias), 0))
    plain, biased = (dict(layer.named_parameters()) for layer in layers)
    x_BTD = torch.randn(2, 6, 8)
    assert_close(layers[1](x_BTD).out_BTD, layers[0](x_BTD).out_BTD)
    assert all(torch.equal(biased[parameter], weight) for parameter, weight in plain.items())
    added = {parameter for parameter in biased if parameter not in plain}
    beside = {
        "shared": ROUTERS[name].shared_factor,
        "unconditional": ROUTERS[name].defaults.get("unconditional_expert"),
    }
    assert added == {"experts.b_in_EF", "experts.b_out_ED"} | {
        f"{part}.{matrix}.bias" for part, exists in beside.items() if exists for matrix in ("w_in", "w_out")
    }
    assert not any(bool(biased[parameter].any()) for parameter in added)


@pytest.mark.parametrize("fast", [True, False])
def test_the_bias_of_an_empty_slot_adds_nothing(fast: bool, layer_of: LayerOf, gradients_of: GradientsOf) -> None:
    """Room for all tokens leaves slots empty, and without a limit there are no such slots."""
    roomy, exact = (
        layer_of(name="token_choice", num_experts=4, capacity_factor=factor, expert_bias=True) for factor in (4.0, None)
    )
    roomy.load_state_dict(exact.state_dict())
    roomy.fast = exact.fast = fast
    x_BTD = torch.randn(4, 16, 8)
    output = roomy(x_BTD)
    assert output.assignment is not None
    assert output.assignment.filled_M is not None
    assert not bool(output.assignment.filled_M.all())
    assert_close(output.out_BTD, exact(x_BTD).out_BTD)
    expected = gradients_of(exact, x_BTD)
    for name, gradient in gradients_of(roomy, x_BTD).items():
        assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_stacked_experts_start_different_and_in_the_range_of_a_dense_layer(layer_of: LayerOf) -> None:
    experts = layer_of(name="expert_choice", num_experts=4).experts
    bound = (6 / (8 + 16)) ** 0.5
    for weight in experts.parameters():
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
        assert not torch.equal(weight[0], weight[1])
