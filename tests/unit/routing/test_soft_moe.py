"""Soft MoE against loops over tokens and slots, and what follows from its being a mixture."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from experiments.config.budget import budget, executed_flops_per_image, slots_per_image
from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward
from experiments.layers.small_layers import gradients, small_config
from experiments.routing.contract import RoutingContext
from experiments.routing.soft_moe import SoftRouter
from experiments.routing.stats import RoutingStats, slots_of_image

IMAGES, TOKENS, WIDTH, EXPERTS = 3, 64, 8, 4


def soft_layer(**routing: object) -> RoutedFeedForward:
    """A layer of 4 experts whose first router is decided enough that weights differ."""
    layer = build_feed_forward(small_config(**{"name": "soft_moe", "num_experts": EXPERTS, **routing}), 0)
    assert isinstance(layer, RoutedFeedForward)
    torch.nn.init.constant_(layer.router.scale, 4.0)
    return layer


def tokens(num_images: int = IMAGES, num_tokens: int = TOKENS) -> Tensor:
    return torch.randn(num_images, num_tokens, WIDTH)


def by_loops(layer: RoutedFeedForward, x_BTD: Tensor) -> Tensor:
    """Algorithm 1 and section 2.3 of the paper, one token and one slot at a time."""
    phi_DS, scale = layer.router.weight_DS, layer.router.scale
    num_slots = phi_DS.shape[1]
    images = []
    for x_TD in x_BTD:
        logits = [
            [scale[0] * (x_D / x_D.norm()) @ (phi_DS[:, slot] / phi_DS[:, slot].norm()) for slot in range(num_slots)]
            for x_D in x_TD
        ]
        exponent_TS = torch.stack([torch.stack(row) for row in logits]).exp()
        results = []
        for slot in range(num_slots):
            mixed_D = sum(
                w / exponent_TS[:, slot].sum() * x_D for w, x_D in zip(exponent_TS[:, slot], x_TD, strict=True)
            )
            expert = slot // (num_slots // EXPERTS)
            w_in_FD, w_out_FD = layer.experts.w_in_EFD[expert], layer.experts.w_out_EFD[expert]
            results.append(F.gelu(w_in_FD @ mixed_D) @ w_out_FD)
        images.append(
            torch.stack(
                [sum(w / row_S.sum() * y_D for w, y_D in zip(row_S, results, strict=True)) for row_S in exponent_TS]
            )
        )
    return torch.stack(images)


@pytest.mark.parametrize("implementation", ["fast", "reference"])
def test_the_layer_computes_what_loops_compute(implementation: str) -> None:
    layer, x_BTD = soft_layer(capacity_factor=0.25), tokens(2, 16)
    layer.fast = implementation == "fast"
    direction_BTD = torch.randn_like(x_BTD)
    found, expected = layer(x_BTD).out_BTD, by_loops(layer, x_BTD)
    assert_close(found, expected)
    parameters = list(layer.parameters())
    of_layer, of_loops = (torch.autograd.grad((out * direction_BTD).sum(), parameters) for out in (found, expected))
    for mine, theirs in zip(of_layer, of_loops, strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_fast_and_reference_agree_in_every_gradient() -> None:
    layer, x_BTD = soft_layer(expert="swiglu", shared_factor=1.0), tokens()
    found = gradients(layer, x_BTD)
    layer.fast = False
    for name, expected in gradients(layer, x_BTD).items():
        assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
        assert expected.abs().sum() > 0, name


def test_decisions_are_float32_in_bfloat16() -> None:
    layer, x_BTD = soft_layer().bfloat16(), tokens().bfloat16()
    narrow, exact = layer(x_BTD), layer.float()(x_BTD.float())
    assert torch.equal(narrow.assignment.weight_M, exact.assignment.weight_M)
    assert narrow.out_BTD.dtype == torch.bfloat16
    assert_close(narrow.out_BTD.float(), exact.out_BTD, rtol=0.05, atol=0.02)


def test_every_slot_is_a_mean_of_tokens_and_every_token_of_slots() -> None:
    layer, x_BTD = soft_layer(), tokens()
    mixture = layer.router(x_BTD).mixture
    assert mixture.dispatch_BTS.dtype == mixture.combine_BTS.dtype == torch.float32
    assert_close(mixture.dispatch_BTS.sum(dim=1), torch.ones(IMAGES, TOKENS))
    assert_close(mixture.combine_BTS.sum(dim=2), torch.ones(IMAGES, TOKENS))


def test_neither_the_size_of_a_token_nor_that_of_a_slot_vector_sharpens_the_softmaxes() -> None:
    layer, x_BTD = soft_layer(), tokens()
    before = layer.router(x_BTD).mixture
    with torch.no_grad():
        layer.router.weight_DS *= 7
    after = layer.router(10 * x_BTD).mixture
    assert_close(after.dispatch_BTS, before.dispatch_BTS)
    assert_close(after.combine_BTS, before.combine_BTS)


def test_without_a_scale_every_token_gets_the_mean_of_what_experts_make_of_the_mean() -> None:
    layer, x_BTD = soft_layer(), tokens()
    torch.nn.init.zeros_(layer.router.scale)
    mean_BD = x_BTD.mean(dim=1)
    results = [
        F.gelu(mean_BD @ w_in_FD.T) @ w_out_FD
        for w_in_FD, w_out_FD in zip(layer.experts.w_in_EFD, layer.experts.w_out_EFD, strict=True)
    ]
    expected_BD = torch.stack(results).mean(dim=0)
    assert_close(layer(x_BTD).out_BTD, expected_BD.unsqueeze(1).expand(-1, TOKENS, -1))


def test_images_are_apart_and_the_order_of_tokens_has_no_meaning() -> None:
    layer, x_BTD = soft_layer(), tokens()
    out_BTD = layer(x_BTD).out_BTD
    for image in range(IMAGES):
        assert_close(layer(x_BTD[image : image + 1]).out_BTD[0], out_BTD[image])
    order = torch.randperm(TOKENS)
    assert_close(layer(x_BTD[:, order]).out_BTD, out_BTD[:, order])


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("num_experts", [3, 4, 5])
@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_there_are_as_many_slots_as_the_capacity_factor_says(
    factor: float, num_experts: int, mask_ratio: float
) -> None:
    config = load_config(
        [
            *("routing=soft_moe", f"routing.capacity_factor={factor}", f"routing.num_experts={num_experts}"),
            f"train.mask_ratio={mask_ratio}",
        ]
    )
    slots = SoftRouter(config).weight_DS.shape[1]
    wanted = factor * config.num_train_tokens
    assert slots % num_experts == 0
    assert slots <= wanted < slots + num_experts
    for training, num_tokens in ((True, config.num_train_tokens), (False, config.num_tokens)):
        assert slots_per_image(config, num_tokens, training) == slots


def test_without_masking_evaluation_mixes_more_tokens_into_the_same_slots() -> None:
    config = load_config(["routing=soft_moe", "train.mask_ratio=0.5"])
    layer = build_feed_forward(config, config.sparse_layer_indices[0])
    width = config.model.width
    for training, num_tokens in ((True, config.num_train_tokens), (False, config.num_tokens)):
        answer = layer.train(training)(torch.randn(2, num_tokens, width))
        assert answer.out_BTD.shape == (2, num_tokens, width)
        planned = slots_per_image(config, num_tokens, training)
        assert float(slots_of_image([answer])) == planned
        assert executed_flops_per_image(config, 2 * planned, training) == (
            budget(config).train_flops_per_image if training else budget(config).flops_per_image
        )


def test_statistics_say_that_every_token_reaches_every_expert() -> None:
    layer, x_BTD = soft_layer(capacity_factor=0.5), tokens()
    with torch.no_grad():
        answer, mixture = layer(x_BTD), layer.router(x_BTD).mixture
    assert answer.assignment.mixture.combine_BTS is None
    assert answer.auxiliary_loss == 0
    stats = RoutingStats(EXPERTS)
    stats.add(answer, torch.rand(IMAGES))
    row = stats.row(0, 0, "mixed_t")
    share_E = mixture.combine_BTS.unflatten(2, (EXPERTS, -1)).sum(dim=(0, 1, 3)) / (IMAGES * TOKENS)
    assert row.load == pytest.approx(share_E.tolist(), rel=1e-5)
    assert (row.dropped_share, row.slots_per_token) == (0, 0.5)
    assert row.experts_per_token == [0, 0, 0, 0, 1]
    assert row.slots_by_image == [0.5, 0.5, 0.5]
    combine_NE = mixture.combine_BTS.unflatten(2, (EXPERTS, -1)).sum(dim=3).flatten(0, 1)
    entropy = float(-(combine_NE * combine_NE.log()).sum(dim=1).mean()) / math.log(EXPERTS)
    assert row.entropy == pytest.approx(entropy, rel=1e-5)


def test_a_context_is_not_read() -> None:
    layer, x_BTD = soft_layer(), tokens()
    context = RoutingContext.of_a_layer_alone(x_BTD)
    other = context._replace(time_B=1 - context.time_B, dropped_B=~context.dropped_B)
    assert torch.equal(layer(x_BTD, context).out_BTD, layer(x_BTD, other).out_BTD)


def test_nothing_is_decided() -> None:
    with pytest.raises(AssertionError, match="SoftRouter has no rule for slots in groups"):
        soft_layer().router.decide(torch.zeros(1, 4, 4), 1)


REFUSED = {
    "routing.group_images=2": "routing.group_images=2 does not fit soft_moe, which mixes the tokens of one image",
    "routing.group_images=batch": "routing.group_images=batch does not fit soft_moe",
    "routing.eval_capacity_factor=2": "routing.eval_capacity_factor=2.0 does not fit soft_moe: its slots are weights",
    "routing.gating=softmax": "routing.gating=softmax does not fit soft_moe: its weights are softmaxes over tokens",
    "routing.gate_norm=token": "routing.gate_norm=token does not fit soft_moe",
    "routing.gate_scale=2": "routing.gate_scale=2.0 does not fit soft_moe",
    "routing.balance_loss_weight=0.1": "routing.balance_loss_weight=0.1 does not fit soft_moe, in which every token",
    "routing.unconditional_expert=True": "routing.unconditional_expert=True does not fit routing.name=soft_moe",
    "routing.eval_decision=threshold": "routing.eval_decision=threshold does not fit routing.name=soft_moe",
    "routing.bias_update_rate=0.1": "routing.bias_update_rate=0.1 does not fit routing.name=soft_moe",
    "routing.capacity_schedule=low_noise": "routing.capacity_schedule=low_noise does not fit routing.name=soft_moe",
    "routing.capacity_by_layer=1.5,0.5": "routing.capacity_by_layer=1.5,0.5 does not fit routing.name=soft_moe",
    "routing.capacity_warmup_images=8": "routing.capacity_warmup_images=8 does not fit routing.name=soft_moe",
    "routing.z_loss_weight=1": "routing.z_loss_weight=1.0 does not fit routing.name=soft_moe",
    "routing.prior_loss_weight=1": "routing.prior_loss_weight=1.0 does not fit routing.name=soft_moe",
    "routing.input=time": "routing.input=time does not fit routing.name=soft_moe",
    "routing.form=mlp": "routing.form=mlp does not fit routing.name=soft_moe",
    "routing.top_k=2": "routing.top_k=2 does not apply to soft_moe",
    "routing.capacity_factor=None": "routing.capacity_factor=None: soft_moe needs a value",
    "routing.capacity_factor=0.05": "routing.capacity_factor=0.05 leaves an expert without a slot",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_without_meaning_is_refused_in_a_line_with_a_way_out(setting: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(REFUSED[setting])) as caught:
        load_config(["routing=soft_moe", setting])
    assert "Use routing." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_way_out_works() -> None:
    assert isinstance(load_config(["routing=soft_moe", "routing.capacity_factor=0.125"]), RunConfig)
