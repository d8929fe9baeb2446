"""Heads follow the width, factors follow rho, and the constants of the optimizer follow the number of steps."""

from __future__ import annotations

import pytest

from experiments.config.designs import load_designed
from experiments.config.identity import config_id
from experiments.config.overrides import load_config, validated
from experiments.config.parametrization import (
    followed_length,
    initial_factor,
    kind_of,
    rate_factor,
    width_ratio,
)

MUP = ("optim.parametrization=mup", "model.head_size=16")


@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(32, 2, 1), (64, 4, 2), (256, 16, 8)])
def test_heads_follow_the_width_in_the_proportion_of_the_preset(width: int, heads: int, kv_heads: int) -> None:
    config = load_config([f"model.width={width}", "model.head_size=16"])
    assert (config.model.num_heads, config.model.num_kv_heads) == (heads, kv_heads)
    assert validated(config) == config


def test_given_heads_of_keys_and_values_are_kept() -> None:
    assert load_config(["model.head_size=32", "model=XL", "model.num_kv_heads=4"]).model.num_kv_heads == 4
    assert load_config(["model.head_size=32", "model=XL"]).model.num_kv_heads == 12


def test_a_dense_match_in_width_keeps_the_head_size() -> None:
    settings = ["routing.num_experts=8", "routing.capacity_factor=4", "model.head_size=16"]
    model = load_designed([*settings, "ecdit.iso_activation=width"]).config.model
    assert model.width == 16 * model.num_heads == 32 * model.num_kv_heads
    assert model.width > 64


def test_the_defaults_are_not_stored_and_leave_the_id_alone() -> None:
    given = [
        "optim.parametrization=standard",
        "routing.gate_norm=none",
        "routing.gate_scale=1",
        "model.head_size=None",
        "routing.expert_bias=False",
    ]
    assert config_id(load_config(given)) == config_id(load_config())
    ids = {config_id(load_config(words)) for words in (
        [], ["model.base_width=64", "optim.parametrization=mup"], ["model.head_size=32"], ["routing.gate_scale=2"],
        ["routing.gate_norm=token"], ["optim.rate_by_length=1"],
        ["routing.expert_bias=True"],
    )}  # fmt: skip
    assert len(ids) == 7


def test_at_the_base_width_every_factor_is_exactly_one() -> None:
    config = load_config([*MUP, "model.width=96", "model.base_width=96"])
    for name in ("embed.weight", "time.mlp_out.weight", "time.mlp_out.bias", "blocks.1.ffn.router.weight_DE"):
        assert (initial_factor(config, name), rate_factor(config, name)) == (1.0, 1.0)


def test_rates_of_weights_that_read_the_width_fall_with_it() -> None:
    config = load_config([*MUP, "model.width=256", "model.base_width=64"])
    assert width_ratio(config) == 4
    assert rate_factor(config, "blocks.0.attention.query.weight") == rate_factor(config, "head.weight") == 0.25
    assert rate_factor(config, "embed.weight") == rate_factor(config, "blocks.0.modulation_6D") == 1.0
    assert initial_factor(config, "time.mlp_out.weight") == 0.5  # drawn with 0.02 at every width


def test_biases_of_experts_learn_at_the_rate_of_vectors() -> None:
    names = ("experts.b_in_EF", "experts.b_out_ED", "shared.w_in.bias", "shared.w_out.bias")
    assert {kind_of(f"blocks.1.ffn.{name}") for name in names} == {"vector"}


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(KeyError, match=r"blocks\.attention\.gate\.weight"):
        kind_of("blocks.3.attention.gate.weight")


def test_constants_follow_the_steps_by_the_square_root_rule() -> None:
    """The example of Complete-muE: four times the steps halve rate and decay."""
    settings = ["optim.learning_rate=4.52e-3", "optim.weight_decay=0.02", "train.images=3200", "train.batch_images=32"]
    plain, followed = (followed_length(load_config([*settings, *more])) for more in ([], ["optim.rate_by_length=25"]))
    assert followed.learning_rate == pytest.approx(2.26e-3)
    assert followed.weight_decay == pytest.approx(0.01)
    assert followed.epsilon == pytest.approx(2 * plain.epsilon)
    assert 1 - followed.beta2 == pytest.approx((1 - plain.beta2) / 4)
    assert followed_length(load_config([*settings, "optim.rate_by_length=100"])) == plain


def test_batch_and_length_enter_only_by_their_ratio() -> None:
    one = load_config(["optim.rate_by_length=50", "train.images=3200", "train.batch_images=32"])
    other = load_config(["optim.rate_by_length=50", "train.images=6400", "train.batch_images=64"])
    assert followed_length(one) == followed_length(other)
