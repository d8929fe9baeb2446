"""Axes of routing fit the rule of a router and each other, or are refused in one line with a way out that works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments.config.budget import budget, slots_per_image
from experiments.config.checks import check_config
from experiments.config.identity import config_id
from experiments.config.overrides import known_settings, load_config
from experiments.config.router_sizes import layer_factors
from experiments.config.routers import ALIASES, ROUTERS, choosing_names, routed_names
from experiments.config.routing_checks import AXES
from experiments.config.routing_settings import RoutingConfig
from experiments.config.stored import buildable_config
from experiments.errors import ConfigError
from tests.unit.config.refusals import assert_refused_with_a_way_out

TWO_LAYERS = "model.num_layers=4"
MISFITS = [
    (key, name) for key, axis in AXES.items() for name in routed_names() if ROUTERS[name].rule not in axis.families
]


def another_value(key: str) -> Any:
    """A value of the setting that is not its default; experts of text are at least as many as a token has."""
    if key == "text_experts":
        return 4
    default, accepts = RoutingConfig.model_fields[key].default, known_settings()[f"routing.{key}"]
    if bool in accepts.kinds:
        return not default
    if accepts.kinds & {int, float}:
        return 0.5 if default != 0.5 and int not in accepts.kinds else default + 1
    return next((word for word in accepts.words if word != default), "1.5,0.5")


def test_every_axis_is_a_setting_and_every_setting_that_may_be_absent_is_an_axis() -> None:
    of_gates = {"gate_norm", "gate_scale"}  # `transfer_checks.py` has them
    absent = {name for name, field in RoutingConfig.model_fields.items() if field.exclude_if}
    assert set(AXES) == absent - of_gates


@pytest.mark.parametrize(("key", "router"), MISFITS)
def test_an_axis_is_refused_where_the_rule_does_not_have_it(key: str, router: str) -> None:
    setting = f"routing.{key}={another_value(key)}"
    block = f"model.block={'mmdit' if key == 'text_experts' else 'pixart'}"
    with pytest.raises(ConfigError) as caught:
        load_config([block, f"routing={router}", setting])
    default = RoutingConfig.model_fields[key].default
    assert str(caught.value).startswith(f"{setting} does not fit routing.name={router}: {AXES[key].reason}. Use ")
    assert f"Use routing.{key}={default}" in caught.value.hint
    load_config([block, f"routing={router}", setting, f"routing.{key}={default}"])
    another = re.search(r", or routing\.name=(\w+)\.$", caught.value.hint)
    assert another is not None, caught.value.hint
    load_config([block, f"routing={another.group(1)}", setting])


@pytest.mark.parametrize("router", [name for name in routed_names() if ROUTERS[name].rule != "tokens"])
def test_a_balance_loss_is_refused_where_there_is_none(router: str) -> None:
    message = f"routing.balance_loss_weight=0.1 does not fit (routing.name=)?{router}"
    with pytest.raises(ConfigError, match=message):
        load_config([f"routing={router}", "routing.balance_loss_weight=0.1"])


def test_a_run_of_an_earlier_version_keeps_what_nothing_reads(tmp_path: Path) -> None:
    """It can still be sampled and evaluated, although its settings are refused for a new run."""
    stored = load_config(["routing=expert_choice", "flow.objective=ddpm"]).model_dump()
    stored["routing"]["balance_loss_weight"] = 0.1
    stored["train"]["init_noise"] = 0.5
    stored["eval"]["sample_steps"] = 2000
    config = buildable_config(stored, tmp_path / "run.json")
    assert (config.routing.balance_loss_weight, config.train.init_noise) == (0.1, 0.5)
    with pytest.raises(ConfigError):
        check_config(config)


COMBINATIONS = [
    (
        "routing=loss_free routing.gating=identity",
        "bias_update_rate=0.001 does not fit routing.gating=identity: the size",
    ),
    (
        "routing=token_choice routing.bias_update_rate=0.1",
        "bias_update_rate=0.1 does not fit routing.name=token_choice: Deep",
    ),
    (
        "routing=switch routing.balance_scope=all",
        "balance_scope=all does not fit routing.name=switch: DeepSpeed's gates",
    ),
    (
        "routing.eval_decision=predictor",
        "routing.eval_decision=predictor needs routing.predictor_loss_weight, without which",
    ),
    (
        "routing.contrastive_loss_weight=1",
        "contrastive_loss_weight=1 does not fit routing.form=linear, which has no proto",
    ),
    (
        "routing=promoe routing.input=time",
        "contrastive_loss_weight=1 does not fit routing.input=time: it compares proto",
    ),
    (
        "routing=shared_expert routing.group_images=all",
        "group_images=all does not fit routing.name=shared_expert, which cannot rank the tokens of all processes.",
    ),
    (
        "routing=promoe_ec routing.group_images=2",
        "unconditional_expert=True does not fit routing.group_images=2: tokens",
    ),
    (
        "routing=promoe train.caption_dropout=0",
        "unconditional_expert=True does not fit train.caption_dropout=0: the expert",
    ),
    (
        "routing=ec_noise_capacity routing.group_images=2",
        "capacity_schedule=low_noise does not fit routing.group_images=2",
    ),
    (
        "routing=ec_noise_capacity routing.eval_decision=threshold",
        "routing.capacity_schedule=low_noise does not fit routing.eval_decision=threshold, which has no capacity.",
    ),
    (
        "routing=expert_threshold routing.group_images=1",
        "routing.group_images=1 does not fit expert_threshold, whose thresholds are those of all tokens.",
    ),
    *(
        (f"routing={router} routing.{setting}", f"routing.{setting} does not fit {router}, {reason}")
        for router in ("hash", "random", "timestep_experts")
        for setting, reason in (
            ("gating=identity", "which has no scores"),
            ("gate_norm=token", "which has no scores"),
            ("balance_loss_weight=0.01", "whose choice does not learn"),
        )
    ),
    (
        "routing=diffmoe routing.eval_capacity_factor=2",
        "routing.eval_capacity_factor=2.0 does not fit routing.eval_decision=predictor, which has no capacity.",
    ),
    (
        "routing=expert_threshold routing.eval_capacity_factor=2",
        "routing.eval_capacity_factor=2.0 does not fit expert_threshold: its thresholds decide outside training too.",
    ),
    (
        "routing.threshold_decay=0.5",
        "routing.threshold_decay=0.5 does not fit routing.eval_decision=same, which has no thresholds.",
    ),
    (
        "routing=loss_free routing.balance_scope=all",
        "routing.balance_scope=all needs routing.balance_loss_weight, without which there is no balance loss.",
    ),
    (f"{TWO_LAYERS} routing=loss_free routing.capacity_by_layer=1.5,0.5", "does not fit routing.capacity_factor=None."),
    (
        f"{TWO_LAYERS} routing.capacity_by_layer=1.5,0.4",
        "has the mean 0.95, so that routing.capacity_factor would not be",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), COMBINATIONS)
def test_a_combination_without_a_meaning_is_one_line_and_its_way_out_works(overrides: str, message: str) -> None:
    assert_refused_with_a_way_out(overrides, message)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ("1,1,1", "routing.capacity_by_layer=1,1,1 has 3 numbers, and 2 layers are routed. Give 2 numbers."),
        ("2,0", "routing.capacity_by_layer=2,0 has a number that is not above 0. Use numbers such as 1.5 and 0.5."),
        ("a,b", "routing.capacity_by_layer='a,b' is not a list of numbers. Use for example 1.5,1,0.5."),
        ("nan,1", "routing.capacity_by_layer=nan,1 has a number that is not above 0."),
        (
            "0.01,1.99",
            "routing.capacity_factor=2 leaves an expert without a slot with 8 experts and 64 tokens per group in the "
            "layer with the factor 0.01. Use routing.group_images=8.",
        ),
    ],
)
def test_factors_of_layers_are_numbers_above_0_one_for_each(factors: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config([TWO_LAYERS, f"routing.capacity_by_layer={factors}"])


def test_no_layer_may_have_more_slots_than_tokens() -> None:
    four = ["routing.capacity_factor=6", TWO_LAYERS, "routing.capacity_by_layer=1.5,0.5"]
    with pytest.raises(
        ConfigError, match=r"=6 is more than routing.num_experts=8 in the layer with the factor 1\.5: .*"
    ):
        load_config(four)
    load_config([*four, "routing.capacity_factor=5.3333"])


def test_a_warmup_needs_a_limit_to_fall_to() -> None:
    """No router of this project whose capacity can fall works without one; one of a plugin might."""
    config = load_config(["routing.capacity_warmup_images=100"])
    assert config.routing.capacity_warmup_images == 100


@pytest.mark.parametrize("warmup", [3200, 38_400, 100_000])
def test_planned_flops_of_a_capacity_that_falls_are_the_mean_over_training(warmup: int) -> None:
    config = load_config([f"routing.capacity_warmup_images={warmup}", "train.images=38400"])
    steps = range(0, config.total_images, config.train.batch_images)
    factors = [2 + 6 * max(0.0, 1 - seen / warmup) for seen in steps]
    slots = slots_per_image(config, 1024, training=True)
    assert slots == pytest.approx(1024 * sum(factors) / len(factors), rel=0.01)
    assert slots_per_image(config, 1024, training=False) == 2 * 1024


def test_factors_of_layers_move_compute_between_layers_and_keep_its_sum() -> None:
    plain, moved = (load_config([TWO_LAYERS, *words]) for words in ([], ["routing.capacity_by_layer=1.5,0.5"]))
    assert layer_factors(moved) == (1.5, 0.5)
    slots = [slots_per_image(moved, 64, training=True, layer_factor=factor) for factor in layer_factors(moved)]
    assert slots == [192, 64]
    assert budget(moved).train_flops_per_image == budget(plain).train_flops_per_image
    assert config_id(moved) != config_id(plain)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_is_stored_under_the_name_of_the_row(alias: str, name: str) -> None:
    for words in ([f"routing={alias}"], [f"routing.name={alias}"]):
        config = load_config(words)
        assert config == load_config([f"routing={name}"])
        assert config.routing.name == name
        assert config_id(config) == config_id(load_config([f"routing={name}"]))


@pytest.mark.parametrize("router", [*choosing_names(), "soft_moe"])
def test_every_routed_layer_can_have_shared_experts(router: str) -> None:
    config = load_config([f"routing={router}", "routing.shared_factor=1"])
    assert budget(config).params_by_part["shared_experts"] > 0


@pytest.mark.parametrize("router", [*routed_names(), *ALIASES])
def test_a_router_is_found_by_a_similar_name(router: str) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean '\w+'\?"):
        load_config([f"routing={router}x"])
