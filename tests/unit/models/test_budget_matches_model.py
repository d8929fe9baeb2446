"""The arithmetic of `experiments.config.budget` equals the real module, part by part, and torch's own FLOP counter."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from experiments.config.blocks import BLOCKS, DenseActivation, QkNorm
from experiments.config.budget import budget, executed_flops_per_image, slots_per_image
from experiments.config.overrides import load_config
from experiments.config.presets import PRESETS
from experiments.config.routers import ROUTERS, routed_names
from experiments.config.routing_checks import AXES
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream, validation_set
from experiments.models.dit import DiT
from experiments.models.parts import assert_matches_budget
from experiments.routing.state import RouterState
from tests.unit.models.counted_flops import (
    BATCH_IMAGES,
    counted,
    expected,
    gate_products,
    let_thresholds_decide,
    loss_products,
)

WITH_TEXT_EXPERTS = [name for name in routed_names() if ROUTERS[name].rule in AXES["text_experts"].families]
INPUTS_VARY = ("expert_choice", "shared_expert")
ARMS = (
    "routing=dense",
    "routing=dense model.ffn_factor=6",
    "routing=expert_choice",
    "routing=expert_choice routing.capacity_factor=1.1 routing.num_experts=5",
    "routing=expert_choice routing.group_images=2 routing.eval_capacity_factor=1",
    "routing=token_choice",
    "routing=token_choice routing.capacity_factor=1.3 routing.num_experts=6",
    "routing=token_choice routing.group_images=1",
    "routing=switch",
    "routing=shared_expert routing.capacity_factor=2",
    "routing=shared_expert",
    "routing=shared_expert routing.num_experts=16 train.implementation=reference",
    "routing=token_choice routing.capacity_factor=None routing.group_images=1",
    "routing=expert_choice routing.expert_bias=True routing.num_experts=5",
    "routing=shared_expert routing.expert_bias=True",
    "routing=expert_choice model.sparse_layers=1:-1",
    "routing=shared_expert model.sparse_layers=0,3",
    "routing=soft_moe",
    "routing=soft_moe routing.capacity_factor=1.7 routing.num_experts=5 routing.expert=swiglu routing.shared_factor=1",
    "routing=switch_dit",
    "routing=switch_dit routing.num_experts=5 routing.top_k=1 routing.prior_loss_weight=0",
    "routing=switch routing.capacity_factor=None parallel.activation_checkpointing=True",
    "routing=promoe train.caption_dropout=0.6",
    "routing=promoe_ec train.caption_dropout=0.6",
    "routing=promoe routing.capacity_factor=2 routing.group_images=1",
    "routing=expert_choice model.num_layers=4 routing.capacity_by_layer=1.5,0.5",
    "routing=token_choice routing.capacity_factor=1.3 model.num_layers=4 routing.capacity_by_layer=0.4,1.6",
    "routing=expert_race model.num_layers=4 routing.capacity_by_layer=0.4,1.6",
    "routing=expert_choice routing.eval_decision=threshold",
    "routing=expert_choice routing.group_images=all routing.num_experts=5 routing.capacity_factor=1.1",
    *(f"routing={router} model.block={block}" for router in ROUTERS for block in ("dit", "mmdit")),
    *(f"routing={router} model.block=mmdit routing.text_experts=4" for router in WITH_TEXT_EXPERTS),
    "routing=dense model.block=mmdit model.num_layers=1",
    "routing=shared_expert model.block=mmdit routing.text_experts=3 routing.input=plain_time model.sparse_layers=all",
    "routing=expert_choice model.block=mmdit routing.text_experts=4 parallel.activation_checkpointing=True",
    *(f"routing={router} model.block=dit routing.input=time_label" for router in INPUTS_VARY),
    *(f"routing=dense model.block={block} model.ffn={kind}" for block in BLOCKS for kind in get_args(DenseActivation)),
    *(f"routing=dense model.block={block} model.qk_norm={kind}" for block in BLOCKS for kind in get_args(QkNorm)),
    "routing=dense model.block=dit model.learn_sigma=False",
    "routing=expert_choice model.block=dit parallel.activation_checkpointing=True",
    *(f"routing=expert_choice routing.input={kind}" for kind in ("plain_time", "time", "time_label")),
    "routing=dense flow.objective=ddpm flow.learned_sigma=True",
    "routing=expert_choice flow.objective=ddpm flow.learned_sigma=True",
    *(f"routing=shared_expert routing.form=mlp routing.input={kind}" for kind in ("plain_time", "time", "time_label")),
)
ON_EVERY_PRESET = ("dense", "expert_choice", "shared_expert")
SMALL_PRESETS = ("nano", "S")
CASES = [
    *(("nano", f"routing={router}") for router in routed_names()),
    *(("nano", arm) for arm in ARMS),
    *(("micro", f"routing={router}") for router in ("dense", "expert_choice", "token_choice", "switch")),
    *((name, f"routing={router} model.num_layers=4") for name in ("mini", "S") for router in ON_EVERY_PRESET[:2]),
]


def shell_of(config: RunConfig) -> DiT:
    """The real module without memory."""
    with torch.device("meta"):
        return DiT(config)


def of_zeros(config: RunConfig) -> DiT:
    """The real module, whose weights and router states are 0, after one step, so that thresholds decide."""
    model = shell_of(config).to_empty(device="cpu")
    states = (buffer for module in model.modules() if isinstance(module, RouterState) for buffer in module.buffers())
    for tensor in (*model.parameters(), *states):
        torch.nn.init.zeros_(tensor)
    let_thresholds_decide(model)
    return model


@pytest.mark.parametrize(
    ("preset", "router"),
    # Building the largest presets takes seconds, even without memory. Routers differ in their layers alone.
    [
        (preset, router)
        for preset in PRESETS
        for router in ROUTERS
        if router in ON_EVERY_PRESET or preset in SMALL_PRESETS
    ],
)
def test_every_part_of_every_preset_has_the_parameters_that_were_computed(preset: str, router: str) -> None:
    config = load_config([f"model={preset}", f"routing={router}"])
    assert_matches_budget(shell_of(config), budget(config))


@pytest.mark.parametrize("arm", ARMS)
def test_every_part_of_every_arm_has_the_parameters_that_were_computed(arm: str) -> None:
    config = load_config(arm.split())
    assert_matches_budget(shell_of(config), budget(config))


def test_a_model_that_differs_from_the_arithmetic_is_refused() -> None:
    config, deeper = load_config(["routing=dense"]), load_config(["routing=dense", "model.num_layers=5"])
    with pytest.raises(AssertionError, match="attention"):
        assert_matches_budget(shell_of(config), budget(deeper))


@pytest.mark.parametrize(("preset", "arm"), CASES)
def test_flops_equal_those_that_torch_counts(preset: str, arm: str) -> None:
    sizes = [f"{key}={BATCH_IMAGES}" for key in ("train.batch_images", "eval.batch_images", "eval.images")]
    whole = load_config([f"model={preset}", *arm.split(), *sizes])
    half = load_config([f"model={preset}", *arm.split(), *sizes, "train.mask_ratio=0.5"])
    forward, slots = counted(of_zeros(whole), whole, validation_set(whole)[0], train=False)
    assert forward == expected(whole, slots, train=False) + BATCH_IMAGES * gate_products(whole, whole.num_tokens)
    for config in (whole, half):
        training, slots = counted(of_zeros(config), config, TrainStream(config).batch(0), train=True)
        # The masks get no gradient: their products come twice, not thrice.
        gates = 2 * BATCH_IMAGES * gate_products(config, config.num_train_tokens)
        assert training == expected(config, slots, train=True) + gates + loss_products(config)


@pytest.mark.parametrize("router", routed_names())
def test_executed_flops_of_the_planned_slots_are_the_planned_ones(router: str) -> None:
    config = load_config([f"routing={router}", "train.caption_dropout=0.25", "eval.images=32"])
    tokens, layers = config.num_tokens, len(config.sparse_layer_indices)
    slots = slots_per_image(config, tokens, training=True)
    if config.routing.unconditional_expert:  # a quarter of the tokens has one expert in place of these slots
        slots = 0.75 * slots + 0.25 * tokens
    executed = executed_flops_per_image(config, layers * slots, training=True)
    assert executed == pytest.approx(budget(config).train_flops_per_image, rel=1e-9)
    evaluated = layers * slots_per_image(config, tokens, training=False)
    assert executed_flops_per_image(config, evaluated, training=False) == budget(config).flops_per_image


@pytest.mark.parametrize("num_experts", [8, 16, 32, 64])
@pytest.mark.parametrize("preset", ["XL", "XXL", "3XL", "M"])
def test_experts_add_what_the_paper_says(preset: str, num_experts: int) -> None:
    """EC-DIT, section 3: total(E) - dense of the same depth = sparse [(E - 1) 8 d^2 + E d]."""
    sparse = load_config([f"model={preset}", "routing=expert_choice", f"routing.num_experts={num_experts}"])
    dense = load_config([f"model={preset}", "routing=dense", f"model.num_layers={sparse.model.num_layers}"])
    width, num_sparse = sparse.model.width, len(sparse.sparse_layer_indices)
    assert num_sparse == {"XL": 14, "XXL": 19, "3XL": 21, "M": 19}[preset]
    increment = budget(sparse).params_total - budget(dense).params_total
    assert increment == num_sparse * ((num_experts - 1) * 8 * width**2 + num_experts * width)


def test_dit_moe_is_as_large_as_published() -> None:
    """199M total, 71M activated (S/2-8E2A); its modulation of each block weighs what our cross-attention does."""
    cost = budget(load_config(["model=dit-moe-S", "routing=shared_expert"]))
    assert cost.params_total / 1e6 == pytest.approx(199, rel=0.02)
    assert cost.params_active / 1e6 == pytest.approx(71, rel=0.02)
