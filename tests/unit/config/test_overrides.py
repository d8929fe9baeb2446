"""YAML files and `KEY=VALUE` become one checked config; mistakes become one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.config.overrides import expand, known_settings, load_config
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError


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
    assert leaves(load_config().model_dump()) | of_latents == set(known_settings())
    assert not leaves(load_config().model_dump()) & of_latents


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
        ("routing.top_k=0", "routing.top_k=0 does not apply to expert_choice."),
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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file or directory"):
        load_config(file=tmp_path / "none.yaml")
