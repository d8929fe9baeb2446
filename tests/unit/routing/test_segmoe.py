"""SegMoE's decision: the batch chooses for all of its tokens, so that an image depends on its company by design."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from experiments.layers.feed_forward import RoutedFeedForward
from experiments.routing.contract import RoutingContext

LayerOf = Callable[..., RoutedFeedForward]

SCORES = torch.tensor([[[3.0, 0.0, 1.5], [0.0, 2.0, 1.0]], [[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]]])
"""The scores of two images of two tokens for three experts; they add up to 3, 2, 2.5 and to 0, 2, 1."""


@pytest.mark.parametrize(
    ("group_images", "expected"),
    [(1, [{0, 2}, {0, 2}, {1, 2}, {1, 2}]), ("batch", [{1, 2}, {1, 2}, {1, 2}, {1, 2}])],
)
def test_the_largest_sums_of_scores_choose_for_every_token(
    group_images: int | str, expected: list[set[int]], layer_of: LayerOf
) -> None:
    layer = layer_of(name="segmoe", width=3, num_experts=3, top_k=2, group_images=group_images)
    torch.nn.init.eye_(layer.router.weight_DE)
    with torch.no_grad():
        found = layer.router(SCORES)
    assert found.auxiliary_loss is None
    for scores_E, token, experts in zip(SCORES.flatten(0, 1), range(4), expected, strict=True):
        mine_M = found.token_M == token
        assert set(found.expert_M[mine_M].tolist()) == experts
        torch.testing.assert_close(found.weight_M[mine_M], scores_E[found.expert_M[mine_M]].softmax(dim=0))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_an_image_beside_it_changes_an_image(top_k: int, layer_of: LayerOf) -> None:
    """The invariant that other routers keep fails by design: the added image has the largest scores."""
    layer = layer_of(name="segmoe", num_experts=4, top_k=top_k)
    x_BTD = torch.randn(1, 16, 8)
    logits_E = layer.router.logits(x_BTD, RoutingContext.of_a_layer_alone(x_BTD)).sum(dim=(0, 1))
    least_wanted_D = layer.router.weight_DE[:, logits_E.argmin()].detach()
    added_BTD = torch.cat([x_BTD, 1e3 * least_wanted_D.expand(1, 16, 8)])
    alone, beside = layer(x_BTD), layer(added_BTD)
    assert float(alone.tokens_per_expert_E[logits_E.argmin()]) == 0
    assert float(beside.tokens_per_expert_E[logits_E.argmin()]) == 32
    assert float((beside.out_BTD[:1] - alone.out_BTD).detach().abs().max()) > 0.01


def test_with_every_expert_chosen_no_image_changes_another(layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name="segmoe", num_experts=4, top_k=4), torch.randn(3, 16, 8)
    torch.testing.assert_close(layer(x_BTD).out_BTD[:1], layer(x_BTD[:1]).out_BTD)
