"""Gates after the router's decision: normalised by token, scaled, and equal in both implementations."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS, choosing_names
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward
from experiments.layers.gates import Gates
from experiments.models.dit import DiT
from tests.unit.layers.test_feed_forward import GradientsOf, LayerOf

NUMBERS_OF_EXPERTS = (8, 16, 32, 64)


@pytest.mark.parametrize("name", choosing_names())
@pytest.mark.parametrize("gates", [Gates(scale=3.0), Gates(by_token=True), Gates(by_token=True, scale=2.5)])
def test_both_implementations_agree(name: str, gates: Gates, layer_of: LayerOf, gradients_of: GradientsOf) -> None:
    layer = layer_of(name=name, num_experts=4)
    layer.gates = gates
    x_BTD = torch.randn(4, 16, 8)
    layer.fast = True
    fast, gradients = layer(x_BTD).out_BTD, gradients_of(layer, x_BTD)
    layer.fast = layer.router.fast = False
    assert_close(layer(x_BTD).out_BTD, fast)
    plain = gradients_of(layer, x_BTD)
    for key, gradient in gradients.items():
        assert_close(gradient, plain[key], msg=key)


@pytest.mark.parametrize("name", choosing_names())
def test_a_scale_multiplies_the_routed_branch_alone(name: str, layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name=name, num_experts=4), torch.randn(4, 16, 8)
    layer.shared, layer.gates = None, Gates()
    plain = layer(x_BTD).out_BTD
    layer.gates = Gates(scale=3.0)
    assert_close(layer(x_BTD).out_BTD, 3 * plain)


NORMALISED = [name for name in choosing_names() if ROUTERS[name].top_k != 1 and ROUTERS[name].gating != "identity"]
"""Gates that may be negative cannot be normalised: their sum says nothing of their size."""


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.parametrize("capacity_factor", [1.0, 2.0])
def test_normalised_gates_of_a_taken_token_sum_to_one(name: str, capacity_factor: float, layer_of: LayerOf) -> None:
    """Every expert returns 1, so that the output of a token is the sum of its gates, or 0 where no expert took it."""
    layer = layer_of(name=name, num_experts=4, capacity_factor=capacity_factor)
    layer.shared, layer.gates = None, Gates(by_token=True)
    layer.experts.forward = lambda x_MD, slots_E=None, fast=True: torch.ones_like(x_MD)
    output = layer(torch.randn(4, 16, 8))
    taken_BT = output.experts_per_token_BT > 0
    assert 0 < taken_BT.sum() < taken_BT.numel() or capacity_factor > 1
    assert_close(output.out_BTD, taken_BT.unsqueeze(-1).expand_as(output.out_BTD).float())


def test_gates_that_are_all_zero_stay_zero_with_finite_gradients(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_choice", num_experts=4, gating="sigmoid")
    layer.gates = Gates(by_token=True)
    x_BTD = torch.randn(2, 16, 8)
    with torch.no_grad():
        layer.router.weight_DE.copy_(-1e4 * x_BTD.flatten(0, 1).mean(0).unsqueeze(1).expand(-1, 4))
    x_BTD = x_BTD.abs().requires_grad_()
    output = layer(x_BTD).out_BTD
    output.square().sum().backward()
    assert output.isfinite().all()
    assert x_BTD.grad is not None
    assert x_BTD.grad.isfinite().all()


def test_auto_is_experts_over_capacity_factor() -> None:
    config = load_config(["routing.num_experts=32", "routing.capacity_factor=4", "routing.gate_scale=auto"])
    assert Gates.of(config) == Gates(scale=8.0)
    assert Gates.of(load_config()) == Gates()


def branch_size(*settings: str) -> list[float]:
    """The RMS of the routed branch at its first step, for each number of experts."""
    sizes = []
    for num_experts in NUMBERS_OF_EXPERTS:
        words = [f"routing.num_experts={num_experts}", "model.sparse_layers=all", "model.num_layers=1", *settings]
        config = load_config(["model.width=128", "model.num_layers=1", *words])
        torch.manual_seed(0)
        layer = build_feed_forward(config, 0)
        assert isinstance(layer, RoutedFeedForward)
        x_BTD = torch.nn.functional.layer_norm(torch.randn(8, 64, 128), (128,))
        with torch.no_grad():
            sizes.append(float(layer(x_BTD).out_BTD.square().mean().sqrt()))
    return sizes


def test_the_routed_branch_has_one_size_for_any_number_of_experts_with_normalised_gates() -> None:
    default, by_token = branch_size(), branch_size("routing.gate_norm=token")
    print(default, by_token, branch_size("routing.gate_scale=auto"))
    assert max(by_token) / min(by_token) < 1.2
    assert max(default) / min(default) > 2  # the control


def test_a_model_builds_with_the_settings() -> None:
    model = DiT(load_config(["model.width=32", "routing.gate_norm=token", "routing.gate_scale=2.5"]))
    assert model.blocks[1].ffn.gates == Gates(True, 2.5)
