"""The config id covers what changes the numbers and nothing else."""

from __future__ import annotations

import re

import pytest

from experiments.config.identity import LEFT_OUT, MAY_MOVE, ONLY_HOW, ONLY_WATCHES, config_id, run_name
from experiments.config.overrides import known_settings, load_config
from experiments.config.presets import PRESETS
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig

WITHOUT_EFFECT = {("eval", "metric_images"), ("train", "implementation"), ("data", "path"), ("train", "init_from")}
CHANGEABLE = [key for key, accepts in known_settings().items() if accepts.kinds or len(accepts.words) > 1]


def with_another_value(config: RunConfig, key: str) -> RunConfig:
    """A copy in which only `key` differs, in the type of the setting."""
    section, _, name = key.rpartition(".")
    owner = getattr(config, section) if section else config
    old, accepts = getattr(owner, name), known_settings()[key]
    new: object
    if bool in accepts.kinds:
        new = not old
    elif int in accepts.kinds or float in accepts.kinds:
        new = (old if isinstance(old, int | float) else 0) + (1 if int in accepts.kinds else 0.5)
    elif bool in accepts.kinds:
        new = not old
    else:
        new = next((word for word in accepts.words if word != old), f"{old}-changed")
    changed = owner.model_copy(update={name: new})
    return config.model_copy(update={section: changed}) if section else changed


@pytest.mark.parametrize("key", CHANGEABLE)
def test_the_id_changes_with_exactly_the_settings_that_change_the_numbers(key: str) -> None:
    config = load_config()
    changed = with_another_value(config, key)
    assert changed != config
    section, _, name = key.rpartition(".")
    without_effect = section in LEFT_OUT or (section, name) in WITHOUT_EFFECT
    assert (config_id(changed) == config_id(config)) == without_effect


def test_what_is_left_out_is_the_mirror_the_files_the_layout_what_only_watches_and_how() -> None:
    assert {"wandb", "checkpoint", "parallel", "log"} == LEFT_OUT
    assert {"metric_images"} == ONLY_WATCHES
    assert {"implementation"} == ONLY_HOW
    assert {"path", "init_from"} == MAY_MOVE


BATCH = "routing.group_images=batch"


@pytest.mark.parametrize(
    ("arm", "follows"),
    [
        (f"routing=token_choice {BATCH}", True),
        (f"routing=switch {BATCH}", True),
        (f"routing=expert_choice {BATCH}", True),
        (f"routing=shared_expert {BATCH}", True),  # its balance loss counts over the group
        (f"routing=shared_expert {BATCH} routing.balance_loss_weight=0", False),
        (f"routing=shared_expert {BATCH} routing.balance_loss_weight=0 routing.capacity_factor=2", True),
        ("routing=token_choice routing.group_images=1", False),
        ("routing=expert_choice routing.group_images=8", False),
        ("routing=dense", False),
        (f"routing=shared_expert {BATCH} routing.balance_scope=all", False),
        ("routing=shared_expert routing.group_images=1", False),
        ("routing=shared_expert routing.group_images=1 routing.balance_scope=process", True),
        ("routing=shared_expert routing.group_images=1 routing.balance_scope=all", False),
        ("routing=shared_expert routing.group_images=1 routing.z_loss_weight=0.001", False),
        ("routing=shared_expert routing.group_images=1 routing.similarity_loss_weight=0.001", True),
        ("routing=expert_choice routing.group_images=all", False),
        ("routing=expert_choice routing.group_images=all routing.similarity_loss_weight=0.001", False),
        ("routing=expert_choice routing.group_images=all routing.eval_decision=threshold", False),
        ("routing=expert_choice routing.eval_decision=threshold", True),  # its threshold is a mean over batches
        ("routing=diffmoe routing.group_images=all", True),
        ("routing=expert_race", False),
        (f"routing=expert_race {BATCH}", True),
        ("routing=expert_threshold", True),
        ("routing=promoe", True),  # its contrastive loss counts over the batch of a process
        ("routing=promoe routing.contrastive_loss_weight=0", False),
        ("routing=loss_free", False),  # the loads of all processes move the bias
        ("routing=dsmoe", False),
        ("routing=diffmoe", True),
        ("routing=ec_noise_capacity", False),
        # With accumulation the images that all processes take at a time depend on their number.
        ("routing=expert_choice routing.group_images=all train.accumulation=2", True),
        ("routing=expert_choice routing.group_images=all routing.eval_decision=threshold train.accumulation=2", True),
        ("routing=expert_race train.accumulation=2", True),
        ("routing=shared_expert routing.group_images=1 routing.balance_scope=all train.accumulation=2", True),
        ("routing=expert_choice routing.group_images=2 train.accumulation=2", False),
        ("routing=shared_expert routing.group_images=1 train.accumulation=2", False),
        ("routing=loss_free train.accumulation=2", False),
        ("routing=dense train.accumulation=2", False),
        ("routing=promoe routing.contrastive_loss_weight=0 routing.z_loss_weight=0.001 train.accumulation=2", True),
        ("routing=promoe routing.contrastive_loss_weight=0 routing.z_loss_weight=0.001", False),
        ("routing=promoe routing.contrastive_loss_weight=0 train.accumulation=2", False),
    ],
)
def test_the_id_knows_the_processes_where_routing_groups_follow_them(arm: str, follows: bool) -> None:
    ids = {config_id(load_config([*arm.split(), f"parallel.world={world}"])) for world in (1, 2, 4)}
    assert len(ids) == (3 if follows else 1)
    layouts = ("parallel.zero_stage=2", "parallel.expert_parallel=2", "parallel.activation_checkpointing=True")
    others = {config_id(load_config([*arm.split(), "parallel.world=2", layout])) for layout in layouts}
    assert others == {config_id(load_config([*arm.split(), "parallel.world=2"]))}


def test_equal_values_in_other_spellings_have_the_same_id() -> None:
    a = load_config(["routing.capacity_factor=2", "optim.learning_rate=1e-5", "train.images=6400"])
    b = load_config(["routing.capacity_factor=2.0", "optim.learning_rate=0.00001", "train.images=6.4e3"])
    assert config_id(a) == config_id(b)
    whole = a.model_copy(update={"flow": a.flow.model_copy(update={"time_mean": 0})})
    assert config_id(whole) == config_id(a)


def test_the_id_is_ten_hex_digits() -> None:
    assert re.fullmatch(r"[0-9a-f]{10}", config_id(load_config()))


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        ([], "nano-expert_choice-8e-c2-g1-s0-"),
        (["routing=dense", "seed=3"], "nano-dense-s3-"),
        (["routing=token_choice", "model=S", "routing.capacity_factor=1.5"], "S-token_choice-8e-k2-c1.5-gbatch-s0-"),
        (["routing=shared_expert", "routing.num_experts=16"], "nano-shared_expert-16e-k2-gbatch-s0-"),
    ],
)
def test_a_name_says_what_the_run_is(overrides: list[str], start: str) -> None:
    config = load_config(overrides)
    assert run_name(config) == start + config_id(config)[:6]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("router", ROUTERS)
def test_a_name_is_safe_as_a_file_name(preset: str, router: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+", run_name(load_config([f"model={preset}", f"routing={router}"])))


def test_numbers_by_layer_have_one_form_and_what_is_stored_keeps_its_id() -> None:
    """Settings that are equal have one id, however they are typed; those of an earlier version keep what they had."""
    words, texts = ["model.sparse_layers=all", "model.num_layers=3"], ("1.5,1,0.5", " 1.50, 1.0,.5 ", "15e-1,1,0.50")
    forms = [load_config([*words, f"routing.capacity_by_layer={text}"]) for text in texts]
    assert {config.routing.capacity_by_layer for config in forms} == {"1.5,1,0.5"}
    assert len({config_id(config) for config in forms}) == 1
    stored = forms[0].model_dump()
    stored["routing"]["capacity_by_layer"] = "1.50,1,0.5"
    read = RunConfig.model_validate(stored)
    assert read.routing.capacity_by_layer == "1.50,1,0.5"
    assert config_id(read) != config_id(forms[0])
