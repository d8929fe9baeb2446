"""Blocks and what they are conditioned on: defaults that are not stored, data sets that fit, published sizes."""

from __future__ import annotations

import re

import pytest

from experiments.config.blocks import BLOCKS, block_of, conditioned_by
from experiments.config.budget import budget
from experiments.config.identity import config_id
from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError

PUBLIC_DIT = {"dit-s-2": 32_865_056, "dit-b-2": 130_315_808, "dit-l-2": 457_840_672, "dit-xl-2": 674_834_720}
"""The trainable parameters of the models that the public code of DiT builds, with 1,000 classes and learned sigma."""
PUBLIC_DIT_MOE = {
    ("dit-moe-S", 8, "off"): 199_209_248,
    ("dit-moe-S", 16, "off"): 369_115_424,
    ("dit-moe-B", 8, "off"): 795_664_928,
    ("dit-moe-L", 8, "off"): 2_823_501_856,
    ("dit-moe-XL", 8, "off"): 4_167_869_216,
    ("dit-moe-XL", 8, "affine"): 4_167_877_280,
    ("dit-moe-G", 16, "affine"): 16_503_370_784,
}
"""The same of DiT-MoE's public code, by experts, and by query-key norm, which it has with its flash attention."""

TEXT_EXPERTS = ("model.block=mmdit", "routing.text_experts=4")


@pytest.mark.parametrize("block", BLOCKS)
def test_the_settings_of_a_block_are_stored_only_where_they_are_given(block: str) -> None:
    config = load_config([f"model.block={block}"])
    model = config.model_dump()["model"]
    assert not {"ffn", "qk_norm", "learn_sigma", "time_scale"} & set(model)
    assert ("block" in model) == (block != "pixart")
    assert RunConfig.model_validate(config.model_dump()) == config
    assert block_of(config) == BLOCKS[block]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_setting_that_equals_the_default_of_the_block_is_read_back_as_it_was_given(block: str) -> None:
    given = load_config([f"model.block={block}", "model.qk_norm=off", "model.learn_sigma=False", "model.ffn=gelu"])
    again = RunConfig.model_validate(given.model_dump())
    assert again == given
    assert (block_of(again).qk_norm, block_of(again).learns_sigma, block_of(again).activation) == ("off", False, "gelu")


def test_classes_come_with_the_block_and_captions_go() -> None:
    captions, classes = load_config(), load_config(["model.block=dit"])
    assert config_id(load_config(["model.block=pixart"])) == config_id(captions)
    assert (captions.data.num_classes, captions.data.vocab_size, captions.data.caption_length) == (None, 64, 16)
    assert (classes.data.num_classes, classes.data.vocab_size, classes.data.caption_length) == (384, None, 1)


@pytest.mark.parametrize("preset", PUBLIC_DIT)
def test_dense_presets_have_the_parameters_of_the_public_code(preset: str) -> None:
    config = load_config([f"model={preset}", "data=imagenet", "routing=dense"])
    assert budget(config).params_total == PUBLIC_DIT[preset]


@pytest.mark.parametrize(("preset", "num_experts", "qk_norm"), PUBLIC_DIT_MOE)
def test_dit_moe_presets_have_the_parameters_of_the_public_code(preset: str, num_experts: int, qk_norm: str) -> None:
    words = ["model.block=dit", "data=imagenet", "routing=shared_expert", f"model.qk_norm={qk_norm}"]
    config = load_config([f"model={preset}", *words, f"routing.num_experts={num_experts}"])
    assert budget(config).params_total == PUBLIC_DIT_MOE[preset, num_experts, qk_norm]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.block=unet"], "model.block='unet' is not 'pixart', 'dit' or 'mmdit'."),
        (
            ["data=imagenet"],
            "data.name=imagenet means classes, and model.block=pixart is conditioned on captions. Use model.block=dit.",
        ),
        (
            ["data.num_classes=10"],
            "data.num_classes=10 means classes, and model.block=pixart is conditioned on captions.",
        ),
        (
            ["model.block=dit", "data.num_classes=10"],
            "data.num_classes=10 does not fit data.name=shapes. Use data.num_classes=384.",
        ),
        (["model.block=dit", "data.vocab_size=64"], "data.vocab_size=64 does not fit data.name=shapes."),
        (
            ["model.block=mmdit", "data=imagenet"],
            "data.name=imagenet means classes, and model.block=mmdit is conditioned on captions. Use model.block=dit.",
        ),
        (
            ["model.block=dit", "data=sd3"],
            "model.block=dit is conditioned on classes, which data.name=sd3 does not have.",
        ),
        (
            ["routing.text_experts=4"],
            "routing.text_experts=4 does not fit model.block=pixart, whose text tokens pass no feed-forward. Use "
            "model.block=mmdit, or routing.text_experts=0.",
        ),
        (
            [*TEXT_EXPERTS, "routing=soft_moe"],
            "routing.text_experts=4 does not fit routing.name=soft_moe: its experts do not choose among the tokens of "
            "a caption. Use routing.text_experts=0, or routing.name=expert_choice.",
        ),
        (
            [*TEXT_EXPERTS, "routing=shared_expert", "routing.top_k=5"],
            "routing.top_k=5 is more than routing.text_experts=4. Use routing.text_experts=5, or",
        ),
        (
            [*TEXT_EXPERTS, "routing.capacity_factor=5"],
            "routing.capacity_factor=5 is more than routing.text_experts=4: an expert would have more slots than there",
        ),
        (
            ["model.block=mmdit", "routing.text_experts=64", "routing.num_experts=64"],
            "routing.text_experts=64 leaves an expert without a slot with routing.capacity_factor=2 and 16 text tokens "
            "per group. Use routing.text_experts=32.",
        ),
        (
            [*TEXT_EXPERTS, "model.sparse_layers=3"],
            "routing.text_experts=4 has no effect with model.sparse_layers=3: only the last block has experts, where "
            "text tokens pass no feed-forward. Use model.sparse_layers=all, or routing.text_experts=0.",
        ),
        (
            [*TEXT_EXPERTS, "parallel.world=8", "parallel.expert_parallel=8"],
            "routing.text_experts=4 is not divisible by parallel.expert_parallel=8. Use routing.text_experts=8, or "
            "parallel.expert_parallel=4.",
        ),
        (["model.qk_norm=batch"], "model.qk_norm='batch' is not 'off', 'layer', 'affine', 'rms' or None"),
        (["model.time_scale=0"], "model.time_scale=0 is out of range."),
    ],
)
def test_what_does_not_fit_a_block_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(words)


def test_every_condition_has_a_block() -> None:
    assert {name for condition in ("caption", "class") for name in conditioned_by(condition)} == set(BLOCKS)
