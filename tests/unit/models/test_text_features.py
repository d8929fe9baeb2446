"""Precomputed text features: padding is never read, both kinds matter, and the arithmetic holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.config.budget import budget
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.data.loader import Batch
from experiments.models.dit import DiT
from experiments.models.embed import FeatureProjection
from experiments.models.parts import assert_matches_budget
from experiments.training.objective import forward_loss
from tests.unit.models.counted_flops import (
    BATCH_IMAGES,
    counted,
    expected,
    gate_products,
    let_thresholds_decide,
    loss_products,
)

Awake = Callable[[RunConfig], DiT]
DATA = {
    "name": "latents", "image_size": 8, "channels": 4, "vocab_size": None, "caption_length": 6, "text_width": 20,
    "pooled_width": 12,
}  # fmt: skip


def of_latents(**sections: Any) -> RunConfig:
    model = {"name": "nano", "width": 32, "num_layers": 2, "patch_size": 2}
    return RunConfig.model_validate({"model": model, "data": DATA, "routing": {"num_experts": 4}, **sections})


def features(length_B: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text_BLV = torch.randn(len(length_B), 6, 20, generator=generator)
    return text_BLV.half(), torch.tensor(length_B), torch.randn(len(length_B), 12, generator=generator).half()


def batch_of(config: RunConfig) -> Batch:
    text_BLV, length_B, pooled_BU = features([6, 3])
    noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(
        index_B=torch.arange(2), pixels_BCHW=noise[0], noise_BCHW=noise[1], time_B=torch.tensor([0.2, 0.7]),
        keep_BK=None, text_BLV=text_BLV, text_length_B=length_B, pooled_BU=pooled_BU,
    )  # fmt: skip


def test_what_lies_beyond_the_length_of_a_caption_changes_nothing(awake: Awake) -> None:
    model, batch = awake(of_latents()), batch_of(of_latents())
    text_BLV, length_B, pooled_BU = features([6, 3])
    before = model(batch.pixels_BCHW, batch.time_B, (text_BLV, length_B, pooled_BU)).velocity_BKP
    text_BLV[1, 3:] = 50.0
    after = model(batch.pixels_BCHW, batch.time_B, (text_BLV, length_B, pooled_BU)).velocity_BKP
    assert torch.equal(before, after)
    text_BLV[1, 2] = 50.0
    changed = model(batch.pixels_BCHW, batch.time_B, (text_BLV, length_B, pooled_BU)).velocity_BKP
    assert torch.equal(changed[0], before[0])
    assert not torch.allclose(changed[1], before[1], atol=1e-3)


def test_a_caption_is_the_same_however_far_it_is_padded() -> None:
    torch.manual_seed(0)
    project, (text_BLV, length_B, pooled_BU) = FeatureProjection(20, 12, 32), features([3, 1])
    long, short = project((text_BLV, length_B, pooled_BU)), project((text_BLV[:, :3], length_B, pooled_BU))
    assert long.mask_B11L.view(2, 6).tolist() == [[True] * 3 + [False] * 3, [True] + [False] * 5]
    torch.testing.assert_close(long.text_BLD[:, :3], short.text_BLD)
    assert torch.equal(long.mask_B11L[..., :3], short.mask_B11L)


def test_tokens_and_the_pooled_caption_both_matter(awake: Awake) -> None:
    model, batch = awake(of_latents()), batch_of(of_latents())
    text_BLV, length_B, pooled_BU = features([6, 6])
    velocity = model(batch.pixels_BCHW, batch.time_B, (text_BLV, length_B, pooled_BU)).velocity_BKP
    for other in ((text_BLV.flip(0), length_B, pooled_BU), (text_BLV, length_B, pooled_BU.flip(0))):
        assert not torch.allclose(model(batch.pixels_BCHW, batch.time_B, other).velocity_BKP, velocity, atol=1e-3)


def test_an_untrained_model_predicts_zero_and_every_parameter_gets_a_gradient(awake: Awake) -> None:
    config = of_latents()
    torch.manual_seed(0)
    _, output = forward_loss(DiT(config), batch_of(config), config)
    assert not output.velocity_BKP.any()
    model = awake(config)
    loss_B, output = forward_loss(model, batch_of(config), config)
    (loss_B.mean() + output.auxiliary_loss).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("router", ROUTERS)
def test_the_budget_equals_the_module_and_torchs_counter(router: str) -> None:
    routing = {"name": router} if router == "dense" else {"name": router, "num_experts": 4}
    routing |= {"top_k": 1} if router == "token_choice" else {}
    config = of_latents(routing=routing, train={"batch_images": 2}, eval={"batch_images": 2, "images": 2})
    model = DiT(config)
    let_thresholds_decide(model)
    assert_matches_budget(model, budget(config))
    for train in (False, True):
        found, slots = counted(model, config, batch_of(config), train)
        products = loss_products(config) + 2 * BATCH_IMAGES * gate_products(config, config.num_tokens)
        beside = products if train else BATCH_IMAGES * gate_products(config, config.num_tokens)
        assert found == expected(config, slots, train) + beside


def test_features_of_a_large_model_cost_what_two_layers_cost() -> None:
    """T5-XXL (4096) and CLIP-L (768) into a width of 1152."""
    data = {**DATA, "text_width": 4096, "pooled_width": 768, "image_size": 32, "caption_length": 120}
    config = of_latents(model={"name": "XL"}, data=data, routing={"name": "dense"})
    d = config.model.width
    assert budget(config).params_by_part["text"] == (4096 + 1) * d + (768 + 1) * d + 2 * (d + 1) * d
