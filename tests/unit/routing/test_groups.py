"""Who competes with whom: routing groups keep images apart, and a layer is a function of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.config.routers import ROUTERS, choosing_names, trained_names
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.properties import has_slots
from experiments.layers.small_layers import settle, small_context
from experiments.routing.contract import RoutingContext

LayerOf = Callable[..., RoutedFeedForward]

LIMITED = {
    **{name: {"name": name, "capacity_factor": 1.0} for name in choosing_names()},
    # In its warm start, tokens of the whole batch compete (`test_published_rules.py`).
    "expert_threshold": {"name": "expert_threshold", "capacity_factor": 1.0, "threshold_warmup_images": 0},
    "token choice, top 3": {"name": "token_choice", "top_k": 3, "capacity_factor": 1.5},
    "switch, tight": {"name": "switch", "capacity_factor": 0.75},
}
DROPLESS_NAMES = [name for name in choosing_names() if not ROUTERS[name].needs_capacity]
limited = pytest.mark.parametrize("settings", LIMITED.values(), ids=LIMITED.keys())


def change_of_other_images(layer: RoutedFeedForward, x_BTD: Tensor) -> Tensor:
    """By how much the images but the first change when the first is replaced."""
    replaced_BTD = torch.cat([torch.randn_like(x_BTD[:1]) * 3, x_BTD[1:]])
    return (layer(replaced_BTD).out_BTD - layer(x_BTD).out_BTD)[1:].abs().amax(dim=(1, 2))


@limited
def test_in_groups_of_two_an_image_changes_no_other_group(settings: dict[str, Any], layer_of: LayerOf) -> None:
    """To the bit where all experts have equal slots; else the number of rows changes the rounding of products."""
    layer = layer_of(num_experts=4, group_images=2, **settings)
    settle(layer)
    x_BTD = torch.randn(4, 16, 8)
    _, *others = change_of_other_images(layer, x_BTD).tolist()
    assert max(others) <= (0 if layer(x_BTD).assignment.slots_E is None else 1e-5)


@pytest.mark.parametrize(
    "settings", [LIMITED["expert_choice"], LIMITED["token choice, top 3"], LIMITED["switch, tight"]]
)
def test_images_of_a_group_compete_for_slots(settings: dict[str, Any], layer_of: LayerOf) -> None:
    """This is so where a decision depends on the logits, which a router that goes by place alone does not read."""
    layer = layer_of(num_experts=4, group_images=2, **settings)
    assert change_of_other_images(layer, torch.randn(4, 16, 8))[0] > 0.01


@pytest.mark.parametrize("name", [name for name in DROPLESS_NAMES if name in trained_names()])
def test_without_a_limit_no_image_changes_another(name: str, layer_of: LayerOf) -> None:
    """SegMoE, which is not trained, has the opposite property (`test_segmoe.py`)."""
    layer = layer_of(name=name, num_experts=4, capacity_factor=None, group_images="batch")
    assert float(change_of_other_images(layer, torch.randn(4, 16, 8)).detach().max()) < 1e-5


DROPLESS = [*((name, ROUTERS[name].top_k) for name in DROPLESS_NAMES), ("token_choice", 1), ("token_choice", 3)]
READS_TOKENS = [case for case in DROPLESS if ROUTERS[case[0]].rule != "fixed"]
"""Those whose choice follows the token and not its place or time."""


@pytest.mark.parametrize(("name", "top_k"), READS_TOKENS)
@pytest.mark.parametrize("fast", [True, False])
def test_without_a_limit_the_order_of_the_tokens_changes_nothing(
    name: str, top_k: int, fast: bool, layer_of: LayerOf
) -> None:
    layer = layer_of(name=name, num_experts=4, top_k=top_k, capacity_factor=None, group_images="batch")
    layer.fast = fast
    x_BTD, order_N = torch.randn(2, 16, 8), torch.randperm(32)
    mixed_BTD = x_BTD.flatten(0, 1)[order_N].view(2, 16, 8)
    straight, mixed = layer(x_BTD), layer(mixed_BTD)
    torch.testing.assert_close(mixed.out_BTD.flatten(0, 1), straight.out_BTD.flatten(0, 1)[order_N])
    torch.testing.assert_close(mixed.auxiliary_loss, straight.auxiliary_loss)
    assert torch.equal(mixed.tokens_per_expert_E, straight.tokens_per_expert_E)


@pytest.mark.parametrize(("name", "top_k"), DROPLESS)
def test_without_a_limit_a_last_smaller_group_is_computed_too(name: str, top_k: int, layer_of: LayerOf) -> None:
    layer = layer_of(name=name, num_experts=4, top_k=top_k, capacity_factor=None, group_images=2).eval()
    x_BTD = torch.randn(3, 16, 8)
    context = small_context(x_BTD, num_dropped=1)
    halves = (slice(2), slice(2, 3))
    parts = [RoutingContext(*(None if field is None else field[half] for field in context)) for half in halves]
    alone = torch.cat([layer(x_BTD[:2], parts[0]).out_BTD, layer(x_BTD[2:], parts[1]).out_BTD])
    torch.testing.assert_close(layer(x_BTD, context).out_BTD, alone)


@pytest.mark.parametrize(("name", "top_k"), DROPLESS)
def test_numbers_that_are_not_finite_reach_the_output_and_end_nothing(name: str, top_k: int, layer_of: LayerOf) -> None:
    """The search for the layer that spoiled a run goes through all of them."""
    layer = layer_of(name=name, num_experts=4, top_k=top_k, capacity_factor=None)
    assert layer(torch.full((2, 16, 8), torch.nan)).out_BTD.isnan().any()


@pytest.mark.parametrize(
    "settings", [pytest.param(each, id=key) for key, each in LIMITED.items() if has_slots(each["name"])]
)
def test_a_group_is_decided_as_if_it_were_alone(settings: dict[str, Any], layer_of: LayerOf) -> None:
    router = layer_of(num_experts=4, **settings).router
    logits_GSE = torch.randn(3, 16, 4)
    together = router.decide(logits_GSE, 3)
    alone = [router.decide(logits_GSE[group : group + 1], 3) for group in range(3)]
    for field in ("token_GEC", "weight_GEC", "filled_GEC"):
        if getattr(together, field) is not None:
            assert torch.equal(getattr(together, field), torch.cat([getattr(one, field) for one in alone])), field
    if together.auxiliary_loss is not None:
        losses = [one.auxiliary_loss for one in alone if one.auxiliary_loss is not None]
        torch.testing.assert_close(together.auxiliary_loss, torch.stack(losses).mean())


@limited
@pytest.mark.parametrize("training", [True, False])
def test_the_same_input_gives_the_same_bits(
    settings: dict[str, Any], training: bool, layer_of: LayerOf, gradients_of: Callable[..., dict[str, Tensor]]
) -> None:
    layer, x_BTD = layer_of(num_experts=4, **settings).train(training), torch.randn(4, 16, 8)
    first, second = gradients_of(layer, x_BTD), gradients_of(layer, x_BTD)
    assert torch.equal(layer(x_BTD).out_BTD, layer(x_BTD).out_BTD)
    assert all(torch.equal(first[name], second[name]) for name in first)
