"""What each rule promises of order, noise level, position and modulation, and where it breaks what others promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.routers import ROUTERS, choosing_names
from experiments.config.schema import RunConfig
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward
from experiments.layers.small_layers import settle, small_context
from experiments.routing.contract import Assignment, RoutingContext

LayerOf = Callable[..., RoutedFeedForward]
QUEUE = ["token_choice", "switch", "st_moe"]
"""Routers in which tokens queue for slots by default, so that their order decides who is dropped."""


def replaced(x_BTD: Tensor) -> Tensor:
    """The batch with another first image."""
    return torch.cat([3 * torch.randn_like(x_BTD[:1]), x_BTD[1:]])


COMPETING = {
    **{name: {"name": name} for name in ("diffmoe", "moma", "expert_race")},
    "expert_choice of a batch": {"name": "expert_choice", "group_images": "batch"},
    "token_choice": {"name": "token_choice", "capacity_factor": 1.0},
    "expert_threshold in its first step": {"name": "expert_threshold"},
}


@pytest.mark.parametrize("settings", COMPETING.values(), ids=COMPETING.keys())
def test_in_training_images_of_a_batch_compete(settings: dict[str, Any], layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(num_experts=4, **settings), torch.randn(4, 16, 8)
    together_BTD = layer(x_BTD).out_BTD
    assert (layer(replaced(x_BTD)).out_BTD - together_BTD)[1:].abs().max() > 0.01
    assert (layer(x_BTD[1:2]).out_BTD - together_BTD[1:2]).abs().max() > 0.01


@pytest.mark.parametrize("name", [name for name, row in ROUTERS.items() if row.settings.get("eval_decision")])
def test_a_model_that_decides_as_in_training_serves_an_image_by_its_batch(name: str, layer_of: LayerOf) -> None:
    """The control of the property that an image alone is served as in a batch: thresholds are what makes it hold."""
    layer, x_BTD = layer_of(name=name, num_experts=4), torch.randn(4, 16, 8)
    settle(layer)
    changes = []
    for layer.router.decides_as_in_training in (False, True):
        together_BTD = layer.eval()(x_BTD).out_BTD
        changes.append((layer(replaced(x_BTD)).out_BTD - together_BTD)[1:].abs().max().item())
    assert changes[0] < 1e-5
    assert changes[1] > 0.01


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in choosing_names() if name not in QUEUE])
def test_tokens_change_places_with_their_results(name: str, training: bool, layer_of: LayerOf) -> None:
    """In a router that reads positions they travel with the tokens."""
    layer, x_BTD, order = layer_of(name=name, num_experts=4), torch.randn(4, 16, 8), torch.randperm(16)
    settle(layer)
    layer.train(training)
    context = small_context(x_BTD, num_dropped=1)
    turned = context._replace(residual_BTD=x_BTD[:, order], position_BT=context.position_BT[:, order])
    assert_close(layer(x_BTD[:, order], turned).out_BTD, layer(x_BTD, context).out_BTD[:, order])


BY_POSITION = [name for name in choosing_names() if not ROUTERS[name].has_logits and name != "timestep_experts"]


@pytest.mark.parametrize("name", BY_POSITION)
def test_a_router_by_position_follows_positions_and_not_tokens(name: str, layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name=name, num_experts=4), torch.randn(2, 16, 8)
    context = small_context(x_BTD)
    chosen_NE = layer(x_BTD, context).assignment.chosen_NE
    assert torch.equal(layer(torch.randn(2, 16, 8), context).assignment.chosen_NE, chosen_NE)
    moved = context._replace(position_BT=context.position_BT.flip(1))
    assert torch.equal(layer(x_BTD, moved).assignment.chosen_NE.view(2, 16, 4), chosen_NE.view(2, 16, 4).flip(1))
    # What masking leaves of an image is served as in the whole image.
    kept = torch.tensor([1, 2, 7, 12])
    masked = context._replace(residual_BTD=x_BTD[:, kept], position_BT=context.position_BT[:, kept])
    assert torch.equal(
        layer(x_BTD[:, kept], masked).assignment.chosen_NE.view(2, 4, 4), chosen_NE.view(2, 16, 4)[:, kept]
    )


@pytest.mark.parametrize("num_tokens", [16, 64, 256])
def test_hash_gives_every_expert_an_equal_number_of_positions(num_tokens: int, layer_of: LayerOf) -> None:
    x_BTD = torch.randn(2, num_tokens, 8)
    choices = []
    for place in range(3):
        layer = layer_of(name="hash", num_experts=8)
        layer.router.in_layer(place, 1.0)
        assignment = layer(x_BTD).assignment
        assert assignment.tokens_per_expert_E.tolist() == [num_tokens // 4] * 8
        choices.append(assignment.chosen_NE)
    assert not torch.equal(choices[0], choices[1])


def test_random_is_uniform_and_repeatable_and_new_for_another_time_or_layer(layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name="random", num_experts=8), torch.randn(16, 256, 8)
    context = small_context(x_BTD)._replace(time_B=torch.rand(16))
    choice_BT = layer(x_BTD, context).assignment.logits_NE.argmax(dim=1).view(16, 256)
    assert torch.equal(layer(x_BTD, context).assignment.logits_NE.argmax(dim=1).view(16, 256), choice_BT)
    loads_E = choice_BT.flatten().bincount(minlength=8)
    assert float(((loads_E - 512) ** 2 / 512).sum()) < 24.3  # chi squared of 7 degrees of freedom, 0.1%
    others = [choice_BT[1]]  # of another time
    layer.router.in_layer(1, 1.0)
    others.append(layer(x_BTD, context).assignment.logits_NE.argmax(dim=1).view(16, 256)[0])
    for other_T in others:
        assert 0.04 < float((choice_BT[0] == other_T).float().mean()) < 0.22  # by chance 1/8


def test_experts_by_noise_level_serve_whole_images(layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name="timestep_experts", num_experts=4), torch.randn(6, 16, 8)
    context = small_context(x_BTD)._replace(time_B=torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.99, 1.0]))
    choice_BT = layer(x_BTD, context).assignment.logits_NE.argmax(dim=1).view(6, 16)
    assert choice_BT.tolist() == [[expert] * 16 for expert in (0, 0, 1, 2, 3, 3)]


def per_image(assignment: Assignment, num_images: int) -> Tensor:
    """The number of tokens of each image that each expert takes, [B, E]."""
    return assignment.chosen_NE.view(num_images, -1, assignment.logits_NE.shape[1]).sum(dim=1)


@pytest.mark.parametrize(("schedule", "falls"), [("low_noise", True), ("high_noise", False)])
def test_slots_of_an_image_follow_its_noise_level(schedule: str, falls: bool, layer_of: LayerOf) -> None:
    layer = layer_of(name="ec_noise_capacity", num_experts=4, capacity_factor=1.0, capacity_schedule=schedule)
    x_BTD, time_B = torch.randn(11, 64, 8), torch.linspace(0, 1, 11)
    slots_BE = per_image(layer(x_BTD, small_context(x_BTD)._replace(time_B=time_B)).assignment, 11)
    level_B = 1 - time_B if falls else time_B  # the mean of t over training is 1/2
    expected_B = ((0.4 + 0.6 * level_B / 0.5) * 64 / 4).round()
    assert slots_BE.tolist() == expected_B.unsqueeze(1).expand(11, 4).tolist()


@pytest.mark.parametrize("schedule", ["low_noise", "high_noise"])
@pytest.mark.parametrize("time_mean", [0.0, 0.5])
def test_over_the_noise_levels_of_training_the_mean_capacity_is_as_set(schedule: str, time_mean: float) -> None:
    routing = {"name": "ec_noise_capacity", "num_experts": 8, "capacity_factor": 1.0, "capacity_schedule": schedule}
    model = {"name": "nano", "width": 8, "num_layers": 1, "sparse_layers": "all"}
    flow = {"time_mean": time_mean}
    config = RunConfig.model_validate({"model": model, "routing": routing, "flow": flow})
    router = build_feed_forward(config, 0).router
    quantiles = torch.distributions.Normal(time_mean, config.flow.time_std).icdf((torch.arange(400) + 0.5) / 400)
    x_BTD = torch.randn(400, 64, 8)
    with torch.no_grad():
        assignment = router(x_BTD, small_context(x_BTD)._replace(time_B=quantiles.sigmoid()))
    assert assignment.num_slots / (400 * 64) == pytest.approx(1.0, rel=0.01)


def modulated(residual_BTD: Tensor, scale_BD: Tensor, shift_BD: Tensor) -> Tensor:
    """The tokens that experts read: LN(x) (1 + scale) + shift."""
    plain_BTD = torch.nn.functional.layer_norm(residual_BTD, (8,), eps=1e-6)
    return plain_BTD * scale_BD.unsqueeze(1) + shift_BD.unsqueeze(1)


@pytest.mark.parametrize(("name", "is_ruled"), [("nucleus", False), ("expert_choice", True)])
def test_modulation_leaves_the_choice_of_nucleus_alone(name: str, is_ruled: bool, layer_of: LayerOf) -> None:
    """Ten times the modulation (1 + scale) changes what experts read; expert choice, the control, chooses others."""
    layer, residual_BTD = layer_of(name=name, num_experts=4, group_images="batch"), torch.randn(4, 16, 8)
    scale_BD, shift_BD = 1 + 0.3 * torch.randn(4, 8), torch.randn(4, 8)
    tokens = [modulated(residual_BTD, factor * scale_BD, shift_BD) for factor in (1, 10)]
    context = small_context(residual_BTD)
    first, second = (layer(x_BTD, context) for x_BTD in tokens)
    assert torch.equal(first.assignment.chosen_NE, second.assignment.chosen_NE) is not is_ruled
    assert not torch.allclose(first.out_BTD, second.out_BTD)


def test_gates_of_a_token_of_nucleus_sum_to_its_scale(layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name="nucleus", num_experts=8), torch.randn(4, 16, 8)
    assignment = layer(x_BTD, small_context(x_BTD)).assignment
    gates_M = layer.gates.plain(assignment.weight_M, assignment.token_M, 64)
    sum_N = torch.zeros(64).index_add(0, assignment.token_M, gates_M)
    taken_N = assignment.experts_per_token_N > 0
    assert 0 < int(taken_N.sum()) < 64
    assert_close(sum_N, 2.5 * taken_N.float())


def test_three_families_keep_the_same_number_of_pairs(layer_of: LayerOf) -> None:
    """Expert Race, section 3: token choice (B L, E, k), expert choice (B E, L, k L / E), race (1, B L E, B L k)."""
    families = {
        "shared_expert": {"top_k": 2},
        "expert_choice": {"capacity_factor": 2.0},
        "expert_race": {"capacity_factor": 2.0},
    }
    x_BTD, chosen = torch.randn(4, 16, 8), {}
    for name, settings in families.items():
        chosen[name] = layer_of(name=name, num_experts=8, **settings)(x_BTD).assignment.chosen_NE
    assert {name: int(chosen_NE.sum()) for name, chosen_NE in chosen.items()} == dict.fromkeys(families, 4 * 16 * 2)
    assert Counter(chosen["shared_expert"].sum(dim=1).tolist()) == {2: 64}
    assert chosen["expert_choice"].view(4, 16, 8).sum(dim=1).eq(16 * 2 // 8).all()
    assert len(Counter(chosen["expert_race"].sum(dim=1).tolist())) > 1


def test_a_race_of_one_expert_takes_its_best_tokens(layer_of: LayerOf) -> None:
    assignment = layer_of(name="expert_race", num_experts=1, capacity_factor=0.25)(torch.randn(1, 16, 8)).assignment
    best = assignment.logits_NE[:, 0].sort(descending=True).indices[:4]
    assert sorted(assignment.token_M.tolist()) == sorted(best.tolist())
    assert_close(assignment.weight_M, assignment.logits_NE[assignment.token_M, 0])


def test_of_half_the_images_without_a_caption_the_others_are_as_before(layer_of: LayerOf) -> None:
    for name in ("promoe", "promoe_ec"):
        layer, x_BTD = layer_of(name=name, num_experts=4), torch.randn(4, 16, 8)
        context = small_context(x_BTD)
        half = RoutingContext(*context)._replace(dropped_B=torch.tensor([True, False, True, False]))
        some, none = layer(x_BTD, half), layer(x_BTD, context)
        assert_close(some.out_BTD[1::2], none.out_BTD[1::2])
        alone_BTD = layer.unconditional(x_BTD[::2]).out_BTD + layer.shared(x_BTD[::2]).out_BTD
        assert_close(some.out_BTD[::2], alone_BTD)
        assert some.experts_per_token_BT[::2].eq(1).all()
        assert some.assignment.num_slots == int(some.tokens_per_expert_E.sum()) + 32
        assert some.assignment.unconditional_N.tolist() == half.dropped_B.repeat_interleave(16).tolist()
