"""The numbers of a routed layer: shares of all tokens seen, not means of batch means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from experiments.config.routers import choosing_names
from experiments.config.schema import RunConfig
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward
from experiments.layers.small_layers import small_context
from experiments.routing.contract import Assignment
from experiments.routing.stats import RoutingStats, pair_usage
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
        stats.add(layer(x_BTD), torch.rand(len(x_BTD)))
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
    stats.add(layer_of(num_experts=4, **routing)(torch.randn(4, 10, 8)), torch.rand(4))
    row = stats.row(0, 0, "mixed_t")
    assert sum(row.load) == pytest.approx(1)
    assert sum(row.experts_per_token) == pytest.approx(1)
    assert row.experts_per_token[0] == row.dropped_share


def test_two_processes_merged_are_one_that_saw_both(layer_of: LayerOf) -> None:
    layer = layer_of(name="token_choice", num_experts=4, capacity_factor=1.0).eval()
    batches = torch.randn(4, 10, 8), torch.randn(2, 10, 8)
    together, first, second = (RoutingStats(4) for _ in range(3))
    for batch, stats in zip(batches, (first, second), strict=True):
        time_B = torch.rand(len(batch))
        stats.add(layer(batch), time_B)
        together.add(layer(batch), time_B)
    first.merge(second)
    assert first.row(0, 0, "mixed_t") == together.row(0, 0, "mixed_t")


def test_perfect_balance_and_no_preference_are_one(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_choice", num_experts=4)
    torch.nn.init.zeros_(layer.router.weight_DE)
    stats = RoutingStats(4)
    stats.add(layer(torch.randn(2, 8, 8)), torch.rand(2))
    row = stats.row(0, 0, "mixed_t")
    assert (row.entropy, row.load_entropy) == (pytest.approx(1), pytest.approx(1))


def test_one_expert_has_no_entropy(layer_of: LayerOf) -> None:
    stats = RoutingStats(1)
    stats.add(layer_of(name="switch", num_experts=1)(torch.randn(2, 8, 8)), torch.rand(2))
    row = stats.row(0, 0, "mixed_t")
    assert (row.load, row.entropy, row.load_entropy, row.dropped_share) == ([1.0], 0, 0, 0)


def test_a_dense_layer_has_no_routing_to_count() -> None:
    with pytest.raises(AssertionError, match="routes nothing"):
        RoutingStats(4).add(DenseFeedForward(8, 16)(torch.randn(1, 4, 8)), torch.rand(1))


@pytest.mark.parametrize("name", choosing_names())
def test_pairs_compute_and_times_are_those_of_the_decisions(name: str, layer_of: LayerOf) -> None:
    """Loops over (token, expert) of every router, with an image that has no caption."""
    layer, stats, x_BTD = layer_of(name=name, num_experts=4), RoutingStats(4), torch.randn(4, 10, 8)
    context = small_context(x_BTD, num_dropped=1)
    time_B = torch.tensor([0.02, 0.55, 0.51, 1.0])
    output = layer(x_BTD, context)
    stats.add(output, time_B)
    chosen = output.assignment.chosen_NE.tolist()
    experts = [sum(row) + (layer.unconditional is not None and token < 10) for token, row in enumerate(chosen)]
    together = [[sum(row[a] and row[b] for row in chosen) for b in range(4)] for a in range(4)]
    assert stats.together_EE.tolist() == together
    assert output.experts_per_token_BT.flatten().tolist() == experts
    assert stats.num_slots == output.assignment.num_slots >= sum(experts)
    row = stats.row(0, 0, "mixed_t")
    means = [sum(experts[image * 10 : image * 10 + 10]) / 10 for image in range(4)]
    expected = [means[0], None, None, None, None, (means[1] + means[2]) / 2, None, None, None, means[3]]
    assert row.slots_by_time == [mean if mean is None else pytest.approx(mean) for mean in expected]
    ordered = sorted(means)
    assert row.slots_by_image == pytest.approx([ordered[0], ordered[2], ordered[3]])
    assert row.slots_per_token == pytest.approx(output.assignment.num_slots / 40)
    assert row.pair_usage == pair_usage(torch.tensor(together))


def test_pair_usage_is_the_share_of_pairs_that_make_up_95_percent() -> None:
    together_EE = torch.zeros(4, 4)
    for (first, second), count in {(0, 1): 90, (0, 2): 4, (1, 3): 4, (2, 3): 2}.items():
        together_EE[first, second] = together_EE[second, first] = count
    assert pair_usage(together_EE) == pytest.approx(3 / 6)  # 90 and 94 of 100 are too few, 98 are enough
    assert pair_usage(torch.eye(4)) is None
    assert pair_usage(torch.zeros(1, 1)) is None
    assert pair_usage(torch.ones(4, 4)) == 1


def test_chosen_pairs_are_those_in_filled_slots() -> None:
    assignment = Assignment(
        token_M=torch.tensor([2, 0, 1, 1]),
        weight_M=torch.tensor([1.0, 0.0, 1.0, 1.0]),
        filled_M=torch.tensor([True, False, True, True]),
        slots_E=None,
        logits_NE=torch.zeros(3, 2),
        auxiliary_loss=None,
    )
    assert assignment.chosen_NE.tolist() == [[False, False], [False, True], [True, False]]
