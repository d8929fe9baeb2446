"""Slots that stay empty and tokens that stay outside leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.config.routers import ROUTERS, choosing_names
from experiments.layers.experts import StackedExperts, apply_experts
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.routing.contract import GroupDecision, flatten_groups
from experiments.routing.slots import fill_slots, queue_locations

LayerOf = Callable[..., RoutedFeedForward]

DROPPING = [
    {"name": "expert_choice", "capacity_factor": 0.5},
    {"name": "token_choice", "capacity_factor": 0.5},
    {"name": "switch", "capacity_factor": 0.5},
    {"name": "shared_expert", "capacity_factor": 0.5, "shared_factor": 0.0},
]
dropping = pytest.mark.parametrize("settings", DROPPING, ids=lambda settings: settings["name"])


@dropping
def test_a_token_without_an_expert_gets_exactly_nothing(
    settings: dict[str, Any], layer_of: LayerOf, gradients_of: Callable[..., dict[str, Tensor]]
) -> None:
    layer, x_BTD = layer_of(num_experts=4, balance_loss_weight=0.0, **settings), torch.randn(2, 16, 8)
    output = layer(x_BTD)
    outside_BT = output.experts_per_token_BT == 0
    assert 0 < int(outside_BT.sum()) < 32
    assert output.out_BTD[outside_BT].eq(0).all()
    assert output.out_BTD[~outside_BT].ne(0).all()
    assert gradients_of(layer, x_BTD)["x"][outside_BT].abs().max() == 0


def test_no_value_leaks_through_an_empty_slot() -> None:
    """Empty slots compute some token and add it to that token's own row, with weight 0."""
    expert_GKS = torch.tensor([[[0, 0, 1, -1]]])  # expert 2 gets nobody, token 3 no expert
    slots = fill_slots(expert_GKS, queue_locations(expert_GKS.clamp(min=0), 3), torch.ones(1, 1, 4), 3, capacity=4)
    assignment = flatten_groups([GroupDecision(*slots, auxiliary_loss=None)], [4], torch.zeros(4, 3))
    assert assignment.tokens_per_expert_E.tolist() == [2, 1, 0]
    experts, x_ND = StackedExperts(3, 8, 16, "gelu"), torch.randn(4, 8)
    clean_ND = apply_experts(experts, x_ND, assignment)
    assert clean_ND[3].tolist() == [0.0] * 8
    for poisoned in range(4):
        others = [token for token in range(4) if token != poisoned]
        x_poisoned_ND = x_ND.clone()
        x_poisoned_ND[poisoned] = torch.nan
        assert torch.equal(apply_experts(experts, x_poisoned_ND, assignment)[others], clean_ND[others])


def test_slots_of_a_literal_queue() -> None:
    """Two choices of three tokens: all first choices queue, then all second ones; -1 has no slot."""
    choice_GKS = torch.tensor([[[1, 1, 0], [0, 2, 1]]])
    location_GKS = queue_locations(choice_GKS, num_experts=3)
    assert location_GKS.tolist() == [[[0, 1, 0], [1, 0, 2]]]
    kept_GKS = choice_GKS.masked_fill(location_GKS >= 2, -1)
    weight_GKS = torch.tensor([[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]])
    token_GEC, weight_GEC, filled_GEC = fill_slots(kept_GKS, location_GKS, weight_GKS, num_experts=3, capacity=2)
    assert filled_GEC.tolist() == [[[True, True], [True, True], [True, False]]]
    assert token_GEC[filled_GEC].tolist() == [2, 0, 0, 1, 1]
    torch.testing.assert_close(weight_GEC, torch.tensor([[[0.3, 0.4], [0.1, 0.2], [0.5, 0.0]]]))


def test_without_a_limit_there_are_as_many_slots_as_tokens_that_chose(layer_of: LayerOf) -> None:
    for name in (name for name in choosing_names() if not ROUTERS[name].needs_capacity):
        output = layer_of(name=name, num_experts=4, capacity_factor=None)(torch.randn(2, 16, 8))
        top_k = ROUTERS[name].top_k
        loads = output.tokens_per_expert_E.tolist()
        assert max(loads) > min(loads) or name == "hash"  # which has equal numbers by construction
        assert output.assignment.token_M.shape == output.assignment.weight_M.shape == (32 * top_k,)
        assert output.assignment.expert_M.bincount(minlength=4).tolist() == loads
        assert output.experts_per_token_BT.eq(top_k).all()
