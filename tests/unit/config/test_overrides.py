"""YAML files and `KEY=VALUE` become one checked config; mistakes become one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.config.designs import load_designed
from experiments.config.flow_settings import FlowConfig
from experiments.config.identity import config_id
from experiments.config.overrides import expand, known_settings, load_config
from experiments.config.routers import ROUTERS
from experiments.config.routing_settings import RoutingConfig
from experiments.config.schema import RunConfig
from experiments.config.train_settings import TrainConfig
from experiments.errors import ConfigError
from experiments.records.wandb_mirror import RESOLVED


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    return set().union(
        *(leaves(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}"} for k, v in tree.items())
    )


def test_every_setting_of_a_run_can_be_set() -> None:
    of_latents = {"data.path", "data.fingerprint", "data.text_width", "data.pooled_width"}
    mup = ["optim.parametrization=mup", "model.base_width=64", "model.head_size=32", "optim.rate_by_length=1000"]
    of_transfer = {word.split("=")[0] for word in mup}
    of_routing = {f"routing.{name}" for name, field in RoutingConfig.model_fields.items() if field.exclude_if}
    of_flow = {f"flow.{name}" for name, field in FlowConfig.model_fields.items() if field.exclude_if}
    block = ["model.block=dit", "model.ffn=gelu", "model.qk_norm=rms", "model.learn_sigma=False", "model.time_scale=1",
             "model.positions=rope"]  # fmt: skip
    of_blocks = {word.split("=")[0] for word in block} | {"data.num_classes", "model.positions"}
    of_cooldown = {"optim.cooldown_share", "optim.cooldown_shape"}
    of_parents = {f"train.{name}" for name in TrainConfig.model_fields if name.startswith("init_")}
    of_parents |= {"model.position_side"}
    of_repa = {f"train.{name}" for name in TrainConfig.model_fields if name.startswith("repa_")}
    absent = (
        of_latents | of_transfer | of_routing | of_flow | of_cooldown | of_parents | of_blocks | of_repa | {"train.ema"}
    )  # what only some runs have is stored with these runs alone
    assert leaves(load_config().model_dump()) | absent == set(known_settings())
    assert not leaves(load_config().model_dump()) & absent
    assert leaves(load_config(block).model_dump()) >= of_blocks
    using = load_config([*mup, "routing.gate_norm=token", "routing.gate_scale=2"])
    assert leaves(using.model_dump()) >= of_transfer | {"routing.gate_norm", "routing.gate_scale"}
    assert load_config(["routing.expert_bias=True"]).model_dump()["routing"]["expert_bias"] is True


def test_later_overrides_win() -> None:
    assert load_config(["train.images=1", "train.images=2"]).train.images == 2


def test_short_forms_stand_for_the_name_of_their_section() -> None:
    short = load_config(["model=micro", "routing=switch", "data=shapes", "optim=rmsprop"])
    assert short == load_config(["model.name=micro", "routing.name=switch", "data.name=shapes", "optim.name=rmsprop"])


def test_leading_dashes_are_accepted_as_a_wandb_agent_passes_them() -> None:
    assert load_config(["--model=micro", "--seed=3"]) == load_config(["model=micro", "seed=3"])


def test_a_preset_fills_what_is_left_open_and_nothing_else() -> None:
    config = load_config(["model=micro", "model.width=256"])
    assert (config.model.width, config.model.num_heads, config.optim.learning_rate) == (256, 4, 1e-3)


@pytest.mark.parametrize(
    "words",
    [
        ["optim={'learning_rate': 0.0001, 'name': 'rmsprop'}", "routing={'capacity_factor': None, 'name': 'switch'}"],
        ['--optim={"learning_rate": 0.0001, "name": "rmsprop"}', '--routing={"capacity_factor":null,"name":"switch"}'],
    ],
)
def test_nested_parameters_of_a_wandb_agent_are_groups_of_settings(words: list[str]) -> None:
    flat = ["optim.learning_rate=0.0001", "optim=rmsprop", "routing=switch", "routing.capacity_factor=None"]
    assert load_config(words) == load_config(flat)
    assert load_config(["optim.weight_decay=0.1", *words]).optim.weight_decay == 0.1  # a group names some settings
    assert load_designed(["ecdit={'train_flops': 10000000000000.0}"]) == load_designed(["ecdit.train_flops=1e13"])


STORED = {
    "_wandb": {"cli_version": "0.22.0", "t": {"1": [1, 5], "2": []}},
    "arm": "routing.name=expert_choice model.ffn_factor=6",
    "ecdit.iso_activation": "ffn_factor",
    "ecdit.train_flops": 1e12,
    "ecdit": {"train_flops": 1e12},
    "name": "nano-dense",
    "git_commit": None,
    "command": ["ecdit", "train"],
    "versions": {"python": "3.11"},
}


def test_the_words_of_a_requeued_run_are_its_stored_settings() -> None:
    words = [f"arm={STORED['arm']}", "ecdit.iso_activation=ffn_factor", "ecdit.train_flops=1e12"]
    first = load_designed(words).config
    stored = {**STORED, **first.model_dump(mode="json"), "config_id": config_id(first), "train.images": 64}
    for order in (list(stored), list(reversed(stored)), sorted(stored)):
        assert load_designed([f"{key}={stored[key]}" for key in order]).config == first


def test_sections_of_a_requeued_run_that_wandb_replaced_are_not_lost() -> None:
    """W&B puts a parameter called `model` or `routing` in the place of the section that the mirror stored."""
    first = load_designed(["model=micro", f"arm={STORED['arm']}"]).config
    settings = first.model_dump(mode="json")
    stored = {**STORED, **settings, "config_id": config_id(first), RESOLVED: json.dumps(settings)}
    stored |= {"model": "micro", "routing": "expert_choice"}
    assert load_designed([f"{key}={value}" for key, value in stored.items()]).config == first
    with pytest.raises(ConfigError, match=f"'{RESOLVED}' is not a setting"):
        load_designed([f"{RESOLVED}=1"])


def test_a_run_that_was_requeued_before_it_started_keeps_its_parameters() -> None:
    words = ["_wandb={'desc': None}", "arm=routing.name=dense seed=3", "train.images=64"]
    assert load_designed(words) == load_designed(words[1:])
    assert load_designed(words).config.seed == 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim={'learning_rate': 1", "optim is not YAML"),
        ("optim={'learning_rate': 1, 'learning_rate': 2}", "optim: learning_rate is given twice, in line 1."),
        ("optim={'learning_rat': 1}", "'optim.learning_rat' is not a setting. Did you mean 'optim.learning_rate'?"),
        ("optim={'learning_rate': [1, 2]}", "is a list. A setting takes one value; lists belong in a sweep file."),
        ("optim={'learning_rate': {'a': 1}}", "is a group."),
        ("optim={'learning_rate': " + "[" * 9000, "optim: line 1 is nested more than"),
        ("optim={'a': &a [*a]}", "stands for what it is itself a part of"),
        ("arm=" * 5000 + "seed=1", "the arm 'arm=arm=arm="),
        ("arm=seed=1 train.images=4 seed=2", "seed is given twice in the arm 'seed=1 train.images=4 seed=2'."),
        ("arm=model=nano model.name=micro", "model.name is given twice in the arm"),
    ],
)
def test_a_group_or_an_arm_that_cannot_be_read_is_one_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_designed([word])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_arm_sets_its_settings_together_at_its_place() -> None:
    arm = "arm=routing.name=dense model.ffn_factor=6"
    assert expand(["routing=switch", arm]) == {"routing.name": "dense", "model.ffn_factor": 6.0}
    assert expand([arm, "model.ffn_factor=5"]) == {"routing.name": "dense", "model.ffn_factor": 5.0}


def test_expand_gives_typed_values_under_dotted_names() -> None:
    flat = expand(["model=nano", "optim.learning_rate=1e-5", "routing.capacity_factor=None", "train.images=1e6"])
    assert flat == {
        "model.name": "nano",
        "optim.learning_rate": 1e-5,
        "routing.capacity_factor": None,
        "train.images": 1_000_000,
    }


@pytest.mark.parametrize(
    "text",
    [
        "model: micro\noptim: {learning_rate: 1e-5}\nwandb:\n  group: null\n  mode: disabled\n",
        "model.name: micro\noptim.learning_rate: 1e-5\nwandb: {group: ~, mode: disabled}\neval:\n",
        "arm: model=micro optim.learning_rate=1e-5\nwandb.mode: disabled\n",
        "model.name: micro\noptim.learning_rate: 1e-5\nwandb.mode: disabled\neval: null\nlog: ~\ncheckpoint: None\n",
        '{"model": {"name": "micro"}, "optim": {"learning_rate": 0.00001}, "wandb.mode": "disabled"}',
    ],
)
def test_nested_and_dotted_keys_mean_the_same(tmp_path: Path, text: str) -> None:
    overrides = ["model=micro", "optim.learning_rate=1e-5", "wandb.mode=disabled"]
    assert load_config(file=write(tmp_path, text)) == load_config(overrides)


def test_overrides_are_put_on_top_of_the_file(tmp_path: Path) -> None:
    config = load_config(["seed=2"], write(tmp_path, "seed: 1\ntrain.images: 64\n"))
    assert (config.seed, config.train.images) == (2, 64)


def test_an_empty_file_holds_the_defaults(tmp_path: Path) -> None:
    assert load_config(file=write(tmp_path, "# nothing yet\n")) == load_config()


@pytest.mark.parametrize("router", ROUTERS)
def test_a_resolved_config_reads_back_as_itself(tmp_path: Path, router: str) -> None:
    config = load_config([f"routing={router}", "optim.learning_rate=3e-7"])
    assert load_config(file=write(tmp_path, yaml.safe_dump(config.model_dump()))) == config
    assert load_config(file=write(tmp_path, config.model_dump_json())) == config
    assert RunConfig.model_validate(config.model_dump()) == config


def test_dense_drops_routing_settings_so_that_a_grid_holds_it_once() -> None:
    assert load_config(["routing=dense", "routing.num_experts=16"]) == load_config(["routing=dense"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.images=many", "train.images='many' is not an integer."),
        ("train.images=0", "train.images=0 is out of range. It must be greater than 0."),
        ("train.mask_ratio=1", "train.mask_ratio=1 is out of range. It must be less than 1."),
        ("routing.capacity_factor=-1", "routing.capacity_factor=-1 is out of range. It must be greater than 0."),
        ("routing.capacity_factor=nan", "routing.capacity_factor=nan is out of range. It must be a finite number."),
        ("routing.top_k=0", "routing.top_k=0 does not apply to expert_choice, in which tokens do not choose."),
        ("seed=-1", "seed=-1 is out of range. It must be greater than or equal to 0."),
        ("trian.images=4", "'trian.images' is not a setting. Did you mean 'train.images'?"),
        ("num_experts=8", "'num_experts' is not a setting. Did you mean 'routing.num_experts'?"),
        ("batch_images=8", "Did you mean 'train.batch_images' or 'eval.batch_images'?"),
        ("train.num_expert=8", "Did you mean 'routing.num_experts'?"),
        ("trian.q=4", "'trian.q' is not a setting. Did you mean 'train'?"),
        (
            "parallel.q=1",
            "Choose from: parallel.world, parallel.expert_parallel, parallel.zero_stage, parallel.act",
        ),
        ("foo.bar=1", "'foo.bar' is not a setting. Choose from: checkpoint, data, eval, flow, log, model,"),
        ("log=4", "'log' is a group of settings. Choose from: log.every_images."),
        ("model=nanno", "model.name='nanno' is not a preset. Did you mean 'nano'?"),
        ("routing=expert_choise", "routing.name='expert_choise' is not 'dense', 'expert_choice', 'token_choice',"),
        ("routing.gating=sofmax", "is not 'softmax', 'sigmoid', 'identity' or None. Did you mean 'softmax'?"),
        ("arm=trian.images=4", "'trian.images' is not a setting. Did you mean 'train.images'?"),
        ("arm=dense", "'dense' is not KEY=VALUE. Write for example train.images=6400."),
        ("images", "'images' is not KEY=VALUE. Write for example train.images=6400."),
        ("=3", "'=3' is not KEY=VALUE. Write for example train.images=6400."),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_way_out(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {images: 4}", "'trian.images' is not a setting. Did you mean 'train.images'?"),
        ("train.images: [1, 2]", "is a list. A setting takes one value; lists belong in a sweep file."),
        ("train: {images: 4", "is not YAML: while parsing a flow mapping"),
        ("just words", "does not hold settings. Write lines such as `train.images: 6400`."),
        ("train: 4", "'train' is a group of settings."),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file=write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  images: 1280\n  images: 64000\n", "train.images is given twice, in lines 2 and 3."),
        ("seed: 1\noptim: {beta1: 0}\ntrain: {}\noptim: {beta2: 0}\n", "optim is given twice, in lines 2 and 4."),
        ("train.images: 1280\ntrain:\n  images: 64000\n", "train.images is given twice, in lines 1 and 3."),
        (
            "model: nano\nmodel.name: micro\n",
            "model.name is given twice, in line 1 (model) and in line 2 (model.name).",
        ),
        ("model: {name: nano}\nmodel.name: nano\n", "model.name is given twice, in lines 1 and 2."),
        (
            "seed: 1\narm: routing=dense seed=2\n",
            "seed is given twice, in line 1 (seed) and in line 2 (arm).",
        ),
        ("\narm: seed=1 seed=2\n", "line 2: seed is given twice in the arm 'seed=1 seed=2'."),
        (
            "train: &t {images: 64}\ntrain.images: 32\n",
            "train.images is given twice, in lines 1 and 2.",
        ),
        (
            'train: "{images: 64}"\ntrain.images: 32\n',
            "train.images is given twice, in line 1 (train) and in line 2 (train.images).",
        ),
    ],
)
def test_a_setting_given_twice_in_a_file_is_refused_with_both_lines(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file=file)
    assert str(caught.value) == f"{file}: {message} Keep one of them."


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file or directory"):
        load_config(file=tmp_path / "none.yaml")
