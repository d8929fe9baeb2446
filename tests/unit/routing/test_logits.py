"""What a router reads, and the form of its logits, on every value of `routing.input` and `routing.form`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.small_layers import small_context

LayerOf = Callable[..., RoutedFeedForward]
INPUTS = {
    "modulated": {"x"},
    "plain_time": {"residual_BTD", "time_BD"},
    "time": {"time_BD"},
    "time_label": {"time_BD", "caption_BD"},
}
"""What each input reads: the tokens of the experts, or fields of the context."""


@pytest.mark.parametrize("form", ["linear", "mlp", "cosine"])
@pytest.mark.parametrize("kind", INPUTS)
def test_logits_follow_what_the_input_names_and_nothing_else(kind: str, form: str, layer_of: LayerOf) -> None:
    router = layer_of(name="shared_expert", num_experts=4, input=kind, form=form).router
    x_BTD = torch.randn(3, 6, 8)
    context = small_context(x_BTD)._replace(residual_BTD=torch.randn(3, 6, 8))
    logits_BTE = router.logits(x_BTD, context)
    assert logits_BTE.shape == (3, 6, 4)
    assert logits_BTE.dtype == torch.float32
    changed = {"x": not torch.equal(router.logits(torch.randn(3, 6, 8), context), logits_BTE)}
    for field in ("residual_BTD", "time_BD", "caption_BD"):
        other = context._replace(**{field: torch.randn_like(getattr(context, field))})
        changed[field] = not torch.equal(router.logits(x_BTD, other), logits_BTE)
    assert {field for field, differs in changed.items() if differs} == INPUTS[kind]
    by_image = kind in ("time", "time_label")
    assert torch.equal(logits_BTE, logits_BTE[:, :1].expand_as(logits_BTE)) is by_image


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("form", ["linear", "mlp", "cosine"])
def test_logits_of_16_bit_numbers_are_those_of_float32(kind: str, form: str, layer_of: LayerOf) -> None:
    router = layer_of(name="shared_expert", num_experts=4, input=kind, form=form).router.bfloat16()
    x_BTD = torch.randn(3, 6, 8).bfloat16()
    context = small_context(x_BTD)
    wide = context._replace(**{
        field: getattr(context, field).float() for field in ("residual_BTD", "time_BD", "caption_BD")
    })  # fmt: skip
    narrow_BTE = router.logits(x_BTD, context)
    assert torch.equal(narrow_BTE, router.float().logits(x_BTD.float(), wide))


def test_cosines_do_not_follow_the_size_of_tokens_or_prototypes(layer_of: LayerOf) -> None:
    router, x_BTD = layer_of(name="promoe", num_experts=4).router, torch.randn(2, 6, 8)
    logits_BTE = router.logits(x_BTD, small_context(x_BTD))
    assert float(logits_BTE.detach().abs().max()) <= 1 + 1e-6
    router.weight_DE.data *= 7
    assert_close(router.logits(3 * x_BTD, small_context(3 * x_BTD)), logits_BTE)


def test_the_factor_of_a_layer_multiplies_its_capacity(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_choice", num_experts=4, capacity_factor=1.0)
    layer.router.in_layer(2, 1.5)
    assert layer(torch.randn(2, 16, 8)).tokens_per_expert_E.tolist() == [2 * 6] * 4
