"""Settings that do not fit each other are refused, with a number that works."""

from __future__ import annotations

import re

import pytest

from experiments.config.overrides import load_config
from experiments.config.presets import PRESETS
from experiments.config.routers import ROUTERS, routed_names
from experiments.errors import ConfigError
from tests.unit.config.refusals import assert_refused_with_a_way_out

NO_SLOT = "leaves an expert without a slot: it must be at least"

WITH_A_WAY_OUT = [
    ("model.width=65", "model.width=65 does not divide into model.num_heads=2 heads of even size."),
    ("model.width=66", "model.width=66 does not divide into model.num_heads=2 heads of even size."),
    ("model.num_heads=3", "model.width=64 does not divide into model.num_heads=3 heads of even size."),
    ("model.num_kv_heads=4", "model.num_heads=2 is not divisible by model.num_kv_heads=4."),
    ("model.text_width=200", "model.text_width=200 is not divisible by the 3 heads of the text encoder."),
    ("model.ffn_factor=0.001", "model.ffn_factor=0.001 leaves no hidden width."),
    ("model.num_layers=1", "model.num_layers=1 with model.sparse_layers=alternate has no sparse layer."),
    ("model.sparse_layers=2:-2", "model.num_layers=4 with model.sparse_layers=2:-2 has no sparse layer."),
    ("model.sparse_layers=4:", "model.num_layers=4 with model.sparse_layers=4: has no sparse layer."),
    ("model.sparse_layers=1,4", "model.sparse_layers=1,4 names block 4, but the blocks of model.num_layers=4 are 0 to"),
    ("model.sparse_layers=1,3,1", "model.sparse_layers=1,3,1 names block 1 twice."),
    ("model.sparse_layers=some", "model.sparse_layers='some' is not 'alternate', 'all' or blocks such as 3:-1 or"),
    ("data.image_size=30", "data.image_size=30 is not divisible by model.patch_size=4."),
    ("train.batch_images=33 train.accumulation=2", "parallel.world=1 x train.accumulation=2."),
    ("train.batch_images=6 parallel.world=4", "is not divisible by parallel.world=4 x train.accumulation=1."),
    ("routing.num_experts=0", "routing.num_experts=0 does not fit expert_choice."),
    ("routing.expert_factor=0.001", "routing.expert_factor=0.001 leaves no hidden width."),
    ("routing.gating=None", "routing.gating=None: expert_choice needs a value."),
    ("routing.expert=None", "routing.expert=None: expert_choice needs a value."),
    ("routing.group_images=None", "routing.group_images=None: expert_choice needs a value."),
    ("routing.capacity_factor=None", "routing.capacity_factor=None: expert_choice needs a value."),
    ("routing.eval_capacity_factor=None", "routing.eval_capacity_factor=None: expert_choice needs a value."),
    ("routing=token_choice routing.top_k=None", "routing.top_k=None: token_choice needs a value."),
    ("routing=switch routing.top_k=None", "routing.top_k=None: switch needs a value."),
    ("routing=shared_expert routing.shared_factor=None", "routing.shared_factor=None: shared_expert needs a value."),
    ("routing=token_choice routing.gating=sigmoid", "DeepSpeed's gates take the softmax themselves."),
    ("routing=switch routing.gating=identity", "routing.gating=identity does not work with switch"),
    ("routing=switch routing.top_k=2", "routing.top_k=2 does not fit switch, which sends a token to one expert."),
    ("routing=token_choice routing.top_k=9", "routing.top_k=9 is more than routing.num_experts=8."),
    ("routing.capacity_factor=9", "routing.capacity_factor=9 is more than routing.num_experts=8:"),
    ("routing.eval_capacity_factor=9", "routing.eval_capacity_factor=9 is more than routing.num_experts=8:"),
    ("routing.group_images=5", "routing.group_images=5 does not divide the 32 images that one process takes"),
    ("routing.num_experts=129", f"{NO_SLOT} 2.0157 with 129 experts and 64 tokens per group."),
    (
        "model.sparse_layers=all model.num_layers=2 routing.capacity_by_layer=1.985,0.015",
        "routing.capacity_factor=2 leaves an expert without a slot with 8 experts and 64 tokens per group in the layer "
        "with the factor 0.015.",
    ),
    (
        "model.sparse_layers=all model.num_layers=2 routing.capacity_by_layer=1.95,0.05",
        f"{NO_SLOT} 2.5 with 8 experts and 64 tokens per group in the layer with the factor 0.05.",
    ),
    ("flow.objective=ddpm eval.sample_steps=1001", "does not fit flow.objective=ddpm, which has 1000 noise levels."),
    ("routing.num_experts=64 train.mask_ratio=0.75", f"{NO_SLOT} 4 with 64 experts and 16 tokens per group."),
    ("eval.metric_images=1", "eval.metric_images=1 is too few: frechet-shapes compares a covariance"),
    ("data.image_size=8 eval.metric_images=4", "eval.metric_images=4 does not fit data.image_size=8: below 16 pixels"),
    ("data.image_size=12 eval.metric_images=4", "says yes to 67.8% of them at 8 pixels, 92.6% at 12"),
    ("model.head_size=24", "model.head_size=24 does not divide model.width=64."),
    ("model.head_size=128", "model.head_size=128 does not divide model.width=64."),
    ("model.head_size=15", "model.head_size=15 is odd."),
    ("model.head_size=16 model.num_heads=2", "model.num_heads=2 does not fit model.head_size=16 and model.width=64."),
    ("model.head_size=64", "model.head_size=64 makes 1 heads of model.width=64, but nano shares a head of keys and"),
    ("model.positions=rope model.width=60", "a head of 30 features is not divisible by 4."),
    ("model.positions=rope model.head_size=2", "a head of 2 features is not divisible by 4."),
    ("model.base_width=64", "model.base_width=64 has no meaning with optim.parametrization=standard."),
    ("optim.parametrization=mup", "optim.parametrization=mup needs model.base_width, the width at which"),
    ("optim.rate_by_length=100 optim=rmsprop", "optim.rate_by_length=100 does not fit optim.name=rmsprop"),
    ("optim.rate_by_length=20000", "optim.rate_by_length=20000 is too many steps beside the 1200 of this run"),
    ("routing.gate_norm=token routing.gating=identity", "routing.gate_norm=token does not fit routing.gating=identity"),
    ("routing.gate_norm=token routing=switch", "routing.gate_norm=token does not fit routing.top_k=1"),
    ("routing.gate_scale=auto routing=token_choice", "routing.gate_scale=auto does not fit routing.name=token_choice"),
    (
        "routing.gate_scale=auto routing=shared_expert",
        "routing.gate_scale=auto does not fit routing.name=shared_expert",
    ),
    ("routing.gate_scale=auto routing.gating=sigmoid", "routing.gate_scale=auto does not fit routing.gating=sigmoid"),
    ("routing.gate_scale=auto routing.gate_norm=token", "routing.gate_scale=auto does not fit routing.gate_norm=token"),
    ("routing.eval_capacity_factor=0.05", f"{NO_SLOT} 0.125 with 8 experts and 64 tokens per group."),
]


@pytest.mark.parametrize(("overrides", "message"), WITH_A_WAY_OUT)
def test_a_misfit_is_one_line_and_its_way_out_works(overrides: str, message: str) -> None:
    assert_refused_with_a_way_out(overrides, message)


@pytest.mark.parametrize(
    ("overrides", "way_out"),
    [
        ("", "routing.group_images=2"),
        ("routing.group_images=batch train.batch_images=1", "train.batch_images=2"),
        ("routing.group_images=batch eval.images=33", "eval.images=64"),
        ("routing.group_images=batch eval.batch_images=1", "eval.batch_images=2"),
        ("routing.group_images=batch eval.sample_images=1", "eval.sample_images=2"),
        ("routing.group_images=8 eval.sample_images=1", "eval.sample_images=2"),
    ],
)
def test_every_kind_of_routing_group_must_give_an_expert_a_slot(overrides: str, way_out: str) -> None:
    few_slots = ["routing.num_experts=64", "routing.capacity_factor=0.5", *overrides.split()]
    with pytest.raises(ConfigError, match=re.escape(f"Use routing.capacity_factor=1, or {way_out}.")):
        load_config(few_slots)
    load_config([*few_slots, way_out])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("parallel.expert_parallel=3", "routing.num_experts=8 is not divisible by parallel.expert_parallel=3."),
        ("parallel.expert_parallel=2", "parallel.expert_parallel=2 is more than parallel.world=1."),
        (
            "parallel.expert_parallel=2 parallel.world=3 train.batch_images=36",
            "parallel.world=3 is not divisible by parallel.expert_parallel=2. Use parallel.world=4, or "
            "parallel.expert_parallel=1.",
        ),
        (
            "parallel.expert_parallel=2 parallel.world=2 parallel.zero_stage=3",
            "parallel.zero_stage=3 does not work with parallel.expert_parallel=2",
        ),
        (
            "train.precision=bf16 parallel.zero_stage=0",
            "train.precision=bf16 does not work with parallel.zero_stage=0, which keeps no fp32 weights beside those "
            "in bf16. Use parallel.zero_stage=1, or train.precision=fp32.",
        ),
    ],
)
def test_layouts_that_no_process_could_take_are_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(overrides.split())


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_every_router(preset: str, router: str) -> None:
    load_config([f"model={preset}", f"routing={router}"])


@pytest.mark.parametrize("router", [name for name in routed_names() if not ROUTERS[name].needs_capacity])
def test_tokens_that_choose_may_have_no_capacity_limit(router: str) -> None:
    config = load_config([f"routing={router}", "routing.capacity_factor=None", "routing.eval_capacity_factor=None"])
    assert config.routing.capacity_factor is None


def test_tokens_that_choose_always_get_a_slot() -> None:
    load_config(["routing=token_choice", "routing.num_experts=512", "routing.capacity_factor=0.1"])


def test_a_dense_run_is_not_held_to_routing_limits() -> None:
    load_config(["routing=dense", "model.num_layers=1", "routing.group_images=5"])
