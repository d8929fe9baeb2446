"""Every router and the whole layer against the loops of `tests/oracles.py`: outputs, losses, counts and gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.schema import RoutingConfig, RunConfig
from experiments.layers.feed_forward import RoutedFeedForward
from tests.oracles import Decision, feed_forward, mix, route

ConfigOf = Callable[..., RunConfig]
LayerOf = Callable[..., RoutedFeedForward]
GradientsOf = Callable[..., dict[str, Tensor]]

CASES = {
    "expert choice": {"name": "expert_choice"},
    "expert choice, odd capacity": {"name": "expert_choice", "capacity_factor": 1.3},
    "expert choice, sigmoid": {"name": "expert_choice", "gating": "sigmoid"},
    "expert choice, identity": {"name": "expert_choice", "gating": "identity"},
    "expert choice, swiglu": {"name": "expert_choice", "expert": "swiglu"},
    "token choice": {"name": "token_choice"},
    "token choice, tight": {"name": "token_choice", "capacity_factor": 1.0},
    "token choice, top 3 tight": {"name": "token_choice", "top_k": 3, "capacity_factor": 1.7},
    "token choice, no limit": {"name": "token_choice", "capacity_factor": None},
    "switch with room for all": {"name": "switch", "capacity_factor": 4.0},
    "switch, no limit": {"name": "switch", "capacity_factor": None},
    "shared expert": {"name": "shared_expert"},
    "shared expert, tight": {"name": "shared_expert", "capacity_factor": 1.3},
    "shared expert, sigmoid": {"name": "shared_expert", "capacity_factor": 1.0, "gating": "sigmoid"},
    "expert choice, biases": {"name": "expert_choice", "expert_bias": True},
    "token choice, tight, biases": {"name": "token_choice", "capacity_factor": 1.0, "expert_bias": True},
    "shared expert, biases": {"name": "shared_expert", "expert_bias": True},
    "shared expert, identity top 3": {"name": "shared_expert", "top_k": 3, "gating": "identity"},
}
cases = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
groups = pytest.mark.parametrize("group_images", [1, 2, "batch"])


def by_loops(layer: RoutedFeedForward, x_BTD: Tensor, routing: RoutingConfig) -> tuple[Tensor, Tensor, Decision]:
    """Output, weighted auxiliary loss and decision of the same layer, slowly."""
    decision = route(routing, x_BTD @ layer.router.weight_DE, routing.capacity_factor)
    assert routing.expert is not None
    experts, x_ND = layer.experts, x_BTD.flatten(0, 1)
    out_ND = mix(x_ND, decision.table, [*experts.parameters()], routing.expert)
    if layer.shared is not None:
        w_in, w_out = layer.shared.w_in, layer.shared.w_out
        weights = [w_in.weight, w_out.weight.T, *([w_in.bias, w_out.bias] if routing.expert_bias else [])]
        out_ND = out_ND + torch.stack([feed_forward(x_D, weights, routing.expert) for x_D in x_ND])
    return out_ND.view_as(x_BTD), routing.balance_loss_weight * decision.loss, decision


@cases
@groups
def test_outputs_losses_and_counts(
    settings: dict[str, Any], group_images: int | str, config_of: ConfigOf, layer_of: LayerOf
) -> None:
    settings = settings | {"num_experts": 4, "group_images": group_images}
    layer, x_BTD = layer_of(**settings), torch.randn(4, 6, 8)
    output = layer(x_BTD)
    out_BTD, loss, (table, _) = by_loops(layer, x_BTD, config_of(**settings).routing)
    assert_close(output.out_BTD, out_BTD)
    assert_close(output.auxiliary_loss, loss)
    per_expert, per_token = Counter(row.expert for row in table), Counter(row.token for row in table)
    assert output.tokens_per_expert_E.tolist() == [per_expert[expert] for expert in range(4)]
    assert output.experts_per_token_BT.flatten().tolist() == [per_token[token] for token in range(24)]


@cases
def test_gradients(settings: dict[str, Any], config_of: ConfigOf, layer_of: LayerOf, gradients_of: GradientsOf) -> None:
    settings = settings | {"num_experts": 4, "group_images": 2}
    layer, x_BTD = layer_of(**settings), torch.randn(4, 6, 8)

    def slow_forward(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return by_loops(layer, x_BTD, config_of(**settings).routing)[:2]

    expected = gradients_of(layer, x_BTD, slow_forward)
    for name, gradient in gradients_of(layer, x_BTD).items():
        assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@cases
def test_the_last_group_of_an_evaluation_batch_may_be_smaller(
    settings: dict[str, Any], config_of: ConfigOf, layer_of: LayerOf
) -> None:
    settings = settings | {"num_experts": 4, "group_images": 2}
    layer, x_BTD = layer_of(**settings).eval(), torch.randn(5, 6, 8)
    output = layer(x_BTD)
    out_BTD, loss, _ = by_loops(layer, x_BTD, config_of(**settings).routing)
    assert_close(output.out_BTD, out_BTD)
    assert_close(output.auxiliary_loss, loss)


def test_training_refuses_a_smaller_group(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_choice", num_experts=4, group_images=2)
    for num_images in (1, 3):
        with pytest.raises(AssertionError, match=f"{num_images} images are not whole groups of 2"):
            layer(torch.randn(num_images, 6, 8))


@pytest.mark.parametrize("group_images", [1, 2, "batch"])
def test_a_full_expert_of_switch_keeps_as_many_tokens_as_it_has_slots(
    group_images: int | str, layer_of: LayerOf
) -> None:
    layer = layer_of(name="switch", num_experts=4, capacity_factor=1.0, group_images=group_images)
    logits_BTE = torch.randn(4, 6, 4)
    size = 24 if group_images == "batch" else 6 * int(group_images)
    decision = layer.router.decide(logits_BTE.view(-1, size, 4), size // 4)
    for group, logits_SE in enumerate(logits_BTE.view(-1, size, 4)):
        for expert in range(4):
            filled_C = decision.filled_GEC[group, expert]
            kept = decision.token_GEC[group, expert][filled_C].tolist()
            askers = [token for token in range(size) if int(logits_SE[token].argmax()) == expert]
            assert len(set(kept)) == len(kept) == min(len(askers), size // 4)
            assert set(kept) <= set(askers)
            assert_close(decision.weight_GEC[group, expert][filled_C], logits_SE.softmax(-1)[kept, expert])
