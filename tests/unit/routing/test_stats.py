"""The numbers of a routed layer: shares of all tokens seen, not means of batch means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from experiments.config.schema import RunConfig
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward
from experiments.routing.stats import RoutingStats
from tests.oracles import route

ConfigOf = Callable[..., RunConfig]
LayerOf = Callable[..., RoutedFeedForward]

SETTINGS = [
    {"name": "expert_choice", "capacity_factor": 1.0},
    {"name": "token_choice", "capacity_factor": 1.0},
    {"name": "shared_expert", "capacity_factor": 0.7},
]
settings = pytest.mark.parametrize("routing", SETTINGS, ids=lambda routing: routing["name"])


@settings
def test_shares_are_those_of_the_loops(routing: dict[str, Any], layer_of: LayerOf, config_of: ConfigOf) -> None:
    routing = routing | {"num_experts": 4, "group_images": 1}
    layer, stats = layer_of(**routing).eval(), RoutingStats(4)
    tokens: Counter[tuple[int, int]] = Counter()
    load: Counter[int] = Counter()
    entropies = []
    for number, x_BTD in enumerate([torch.randn(3, 10, 8), torch.randn(1, 10, 8) * 2]):
        stats.add(layer(x_BTD))
        logits_BTE = (x_BTD @ layer.router.weight_DE).detach()
        table = route(config_of(**routing).routing, logits_BTE, routing["capacity_factor"]).table
        tokens.update((number, row.token) for row in table)
        load.update(row.expert for row in table)
        entropies += [float(-(p_E * p_E.log()).sum()) for p_E in logits_BTE.softmax(-1).flatten(0, 1)]
    row = stats.row(images_seen=64, layer=3, condition="same_t")
    shares = Counter(tokens.values())
    assert row.dropped_share == pytest.approx(1 - len(tokens) / 40) == stats.dropped_share
    assert row.dropped_share > 0
    assert row.experts_per_token[1:] == pytest.approx([shares[n] / 40 for n in range(1, max(shares) + 1)])
    assert row.load == pytest.approx([load[expert] / load.total() for expert in range(4)])
    assert row.entropy == pytest.approx(sum(entropies) / 40 / math.log(4), rel=1e-5)
    assert row.load_entropy == pytest.approx(-sum(p * math.log(p) for p in row.load if p) / math.log(4))
    assert (row.images_seen, row.layer, row.condition) == (64, 3, "same_t")


@settings
def test_shares_sum_to_one(routing: dict[str, Any], layer_of: LayerOf) -> None:
    stats = RoutingStats(4)
    stats.add(layer_of(num_experts=4, **routing)(torch.randn(4, 10, 8)))
    row = stats.row(0, 0, "mixed_t")
    assert sum(row.load) == pytest.approx(1)
    assert sum(row.experts_per_token) == pytest.approx(1)
    assert row.experts_per_token[0] == row.dropped_share


def test_two_processes_merged_are_one_that_saw_both(layer_of: LayerOf) -> None:
    layer = layer_of(name="token_choice", num_experts=4, capacity_factor=1.0).eval()
    batches = torch.randn(4, 10, 8), torch.randn(2, 10, 8)
    together, first, second = (RoutingStats(4) for _ in range(3))
    for batch, stats in zip(batches, (first, second), strict=True):
        stats.add(layer(batch))
        together.add(layer(batch))
    first.merge(second)
    assert first.row(0, 0, "mixed_t") == together.row(0, 0, "mixed_t")


def test_perfect_balance_and_no_preference_are_one(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_choice", num_experts=4)
    torch.nn.init.zeros_(layer.router.weight_DE)
    stats = RoutingStats(4)
    stats.add(layer(torch.randn(2, 8, 8)))
    row = stats.row(0, 0, "mixed_t")
    assert (row.entropy, row.load_entropy) == (pytest.approx(1), pytest.approx(1))


def test_one_expert_has_no_entropy(layer_of: LayerOf) -> None:
    stats = RoutingStats(1)
    stats.add(layer_of(name="switch", num_experts=1)(torch.randn(2, 8, 8)))
    row = stats.row(0, 0, "mixed_t")
    assert (row.load, row.entropy, row.load_entropy, row.dropped_share) == ([1.0], 0, 0, 0)


def test_a_dense_layer_has_no_routing_to_count() -> None:
    with pytest.raises(AssertionError, match="routes nothing"):
        RoutingStats(4).add(DenseFeedForward(8, 16)(torch.randn(1, 4, 8)))
