"""How many slots an expert gets: refused below one, and equal to the arithmetic of the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.budget import compute_varies, expert_capacity, slots_per_image
from experiments.config.routers import ROUTERS, choosing_names
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward
from experiments.layers.properties import has_slots

ConfigOf = Callable[..., RunConfig]
LayerOf = Callable[..., RoutedFeedForward]


def computes_as_planned(config: RunConfig, training: bool) -> bool:
    """Whether the slots that are computed follow from the config; an unconditional expert leaves empty ones out."""
    return not compute_varies(config, training) and not config.routing.unconditional_expert


WITH_SLOTS = [
    name
    for name in choosing_names()
    if has_slots(name)
    and ROUTERS[name].defaults.get("eval_decision", "same") == "same"
    and not (ROUTERS[name].rule == "tokens" and ROUTERS[name].defaults.get("unconditional_expert"))
]
"""The routers whose experts have a number of slots in evaluation as in training, and compute them all."""


@pytest.mark.parametrize(
    ("settings", "training", "message"),
    [
        (
            {"capacity_factor": 2.0},
            True,
            "routing.capacity_factor=2 leaves each of 64 experts less than one slot in a group of 12 tokens. "
            "Use at least 5.3334, or more images per routing group.",
        ),
        (
            {"capacity_factor": 2.0, "group_images": "batch"},
            False,
            "routing.capacity_factor=2 leaves each of 64 experts less than one slot in a group of 24 tokens. "
            "Use at least 2.6667, or more images per routing group.",
        ),
        (
            {"capacity_factor": 8.0, "eval_capacity_factor": 0.5},
            False,
            "routing.eval_capacity_factor=0.5 leaves each of 64 experts less than one slot in a group of 12 tokens. "
            "Use at least 5.3334, or more images per routing group.",
        ),
    ],
)
def test_an_expert_without_a_slot_is_refused(
    settings: dict[str, Any], training: bool, message: str, layer_of: LayerOf
) -> None:
    layer = layer_of(name="expert_choice", num_experts=64, **settings).train(training)
    with pytest.raises(ConfigError) as refusal:
        layer(torch.randn(2, 12, 8))
    assert str(refusal.value) == message
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("factor", "way_out"),
    [
        (0.5, "Use at least 10.6667, or more images per routing group."),
        (0.01, "Use more images per routing group."),  # 534 slots a token would be more than there are experts
    ],
)
def test_a_refusal_names_the_factor_that_was_given_and_none_above_the_experts(
    factor: float, way_out: str, layer_of: LayerOf
) -> None:
    layer = layer_of(name="expert_choice", num_experts=64, capacity_factor=2.0)
    layer.router.in_layer(1, factor)
    with pytest.raises(ConfigError) as refusal:
        layer(torch.randn(2, 12, 8))
    assert str(refusal.value) == (
        "routing.capacity_factor=2 leaves each of 64 experts less than one slot in a group of 12 tokens in the layer "
        f"with the factor {factor:g}. {way_out}"
    )


def test_the_way_out_of_the_refusal_works(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_choice", num_experts=64, capacity_factor=5.3334)
    assert layer(torch.randn(2, 12, 8)).tokens_per_expert_E.tolist() == [2] * 64  # one slot in each of two groups


def test_a_smaller_last_group_has_at_least_one_slot(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_choice", num_experts=8, capacity_factor=1.0, group_images=2).eval()
    assert layer(torch.randn(3, 4, 8)).tokens_per_expert_E.tolist() == [1 + 1] * 8
    assert layer(torch.randn(1, 4, 8)).tokens_per_expert_E.tolist() == [1] * 8


@pytest.mark.parametrize("name", WITH_SLOTS)
def test_evaluation_has_a_capacity_of_its_own(name: str, layer_of: LayerOf) -> None:
    layer = layer_of(name=name, num_experts=4, capacity_factor=1.0, eval_capacity_factor=3.0, group_images=1)
    x_BTD = torch.randn(2, 8, 8)
    slots = {mode: layer.train(mode)(x_BTD).assignment.token_M.shape[0] // 4 for mode in (True, False)}
    assert slots == {True: 2 * 2, False: 2 * 6}


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize(("num_tokens", "factor"), [(100, 0.3), (100, 1.2), (96, 0.7), (64, 1.0)])
def test_tokens_that_choose_get_the_slots_of_the_budget(
    num_tokens: int, factor: float, top_k: int, layer_of: LayerOf
) -> None:
    """DeepSpeed multiplies in float32: 100 tokens x 1.2 / 4 experts are 31 slots there and 30 here."""
    layer = layer_of(name="token_choice", num_experts=4, top_k=top_k, capacity_factor=factor)
    torch.nn.init.zeros_(layer.router.weight_DE)  # every token asks the first experts
    assignment = layer(torch.randn(1, num_tokens, 8)).assignment
    slots = expert_capacity(num_tokens, factor, 4, round_up=True)
    assert assignment.token_M.shape == (4 * slots,)
    assert int(assignment.tokens_per_expert_E.max()) == slots


@pytest.mark.parametrize("group_images", [1, 2, "batch"])
@pytest.mark.parametrize("factor", [2.0, 1.0, 1.3])
@pytest.mark.parametrize("name", choosing_names())
def test_the_experts_execute_the_flops_of_the_budget(
    name: str, factor: float, group_images: int | str, config_of: ConfigOf
) -> None:
    planned = {"unconditional_expert": False, "capacity_schedule": "none"}
    settings = {key: value for key, value in planned.items() if ROUTERS[name].defaults.get(key)}
    config = config_of(name=name, num_experts=4, capacity_factor=factor, group_images=group_images, **settings)
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch_images": 4})})
    layer = build_feed_forward(config, 0)
    assert isinstance(layer, RoutedFeedForward)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(4, 10, 8))
    executed = sum(counter.get_flop_counts()["RoutedFeedForward.experts"].values())
    # Adding a bias counts as no FLOPs.
    matrix_elements = (layer.experts.w_in_EFD.numel() + layer.experts.w_out_EFD.numel()) / 4
    assert executed == round(2 * 4 * slots_per_image(config, 10, training=True) * matrix_elements)


@pytest.mark.parametrize("factor", [2.0, 0.7])
@pytest.mark.parametrize("name", choosing_names())
def test_a_smaller_last_group_of_evaluation_is_accounted_as_executed(
    name: str, factor: float, config_of: ConfigOf
) -> None:
    """Five images in groups of two: the last one is rounded to whole slots by itself."""
    config = config_of(name=name, num_experts=4, capacity_factor=factor, group_images=2)
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"batch_images": 5})})
    layer = build_feed_forward(config, 0).eval()
    assert isinstance(layer, RoutedFeedForward)
    assignment = layer(torch.randn(5, 10, 8)).assignment
    assert assignment is not None
    planned = 5 * slots_per_image(config, 10, training=False)
    if computes_as_planned(config, training=False):
        assert assignment.token_M.shape[0] == assignment.num_slots == pytest.approx(planned)
    else:  # the slots are counted, as they follow the tokens
        assert assignment.num_slots == assignment.token_M.shape[0] == int(assignment.tokens_per_expert_E.sum())
