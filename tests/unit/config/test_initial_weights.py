"""What `train.init_from` takes from its parent, what it refuses, and what follows from another resolution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.config.designs import load_designed
from experiments.config.identity import config_id
from experiments.config.initial_weights import beginnings, require_parent_fits
from experiments.config.objectives import OBJECTIVES
from experiments.config.overrides import load_config
from experiments.data.loader import TrainStream
from experiments.errors import ConfigError, RecordError
from experiments.flow.objective_contract import objective_of
from experiments.models.embed import sinusoidal_positions
from experiments.records.parent_weights import find_parent
from experiments.records.run_folder import RunDir
from tests.training_runs import random_run_folder

SMALL = ("model=nano", "model.num_layers=2")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(tmp_path_factory.mktemp("dense") / "run", "routing=dense")


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(tmp_path_factory.mktemp("routed") / "run", "routing=expert_choice")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("model.num_heads=4", "model.num_heads=4 does not fit train.init_from={dense}, whose model.num_heads is 2. "),
        (
            "flow.prediction=x0",
            "flow.prediction=x0 does not fit train.init_from={dense}, whose flow.prediction is velocity.",
        ),
        ("flow.objective=ddpm", "flow.objective=ddpm does not fit train.init_from={dense}"),
        ("model.patch_size=2", "model.patch_size=2 does not fit train.init_from={dense}"),
        ("model.text_layers=2", "model.text_layers=2 does not fit train.init_from={dense}"),
        ("model.ffn_factor=2 routing.expert_factor=2", "model.ffn_factor=2.0 does not fit"),
        ("routing.num_experts=7 routing.expert_factor=2 train.init_experts=split", "a feed-forward has 2 parts"),
        ("train.init_optimizer=carried", "the state of an optimizer belongs to the raw weights"),
        ("train.init_optimizer=carried train.init_weights=raw optim.name=rmsprop", "optim.name=rmsprop does not fit"),
        ("routing=dense train.init_experts=noise", "no block has experts here and a dense feed-forward there"),
    ],
)
def test_what_does_not_fit_a_dense_parent_is_one_line(dense: RunDir, settings: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_designed([*SMALL, *settings.split(), f"train.init_from={dense.path}"])
    assert message.format(dense=dense.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Use " in caught.value.hint or "Leave out" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("routing=dense", "routing.name=dense does not fit"),
        ("routing.num_experts=4", "routing.num_experts=4 does not fit"),
        ("routing.expert=swiglu", "routing.expert=swiglu does not fit"),
        ("model.sparse_layers=0", "model.sparse_layers=0 does not fit"),
        ("routing=switch_dit", "routing.name=switch_dit does not fit"),
    ],
)
def test_what_does_not_fit_a_parent_with_experts_is_one_line(routed: RunDir, settings: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_designed([*SMALL, *settings.split(), f"train.init_from={routed.path}"])
    assert message in str(caught.value)


def test_experts_of_text_do_not_begin_from_a_parent_without_them(tmp_path: Path) -> None:
    parent = random_run_folder(
        tmp_path / "run", "routing=expert_choice", "model.block=mmdit", "model.sparse_layers=all"
    )
    mmdit = ["model.block=mmdit", "model.sparse_layers=all", "routing.text_experts=4"]
    with pytest.raises(ConfigError, match=r"routing\.text_experts=4 does not fit train\.init_from=.*is 0\."):
        load_designed([*SMALL, *mmdit, f"train.init_from={parent.path}"])


@pytest.mark.parametrize(
    "name", ["init_fingerprint=abc", "init_experts=split", "init_noise=0.5", "init_drop=0.2", "init_weights=raw"]
)
def test_settings_without_a_parent_have_no_meaning(name: str) -> None:
    with pytest.raises(ConfigError, match=r"has no meaning without train\.init_from"):
        load_config([f"train.{name}"])


@pytest.mark.parametrize("settings", ["train.init_drop=0.2", "train.init_drop=0.2 train.init_experts=noise",
                                      "train.init_noise=0.2 train.init_experts=drop"])  # fmt: skip
def test_settings_of_another_way_to_make_experts_have_no_meaning(dense: RunDir, settings: str) -> None:
    name, way = settings.split("=")[0], settings.split("=")[-1]
    with pytest.raises(
        ConfigError, match=f"{name}=0.2 has no meaning with train.init_experts={way if way != '0.2' else 'copy'}"
    ):
        load_designed([*SMALL, *settings.split(), f"train.init_from={dense.path}"])


def test_a_parent_that_is_gone_is_read_neither_for_a_run_that_has_begun(dense: RunDir, tmp_path: Path) -> None:
    words = [*SMALL, f"train.init_from={dense.path}"]
    begun = load_designed(words).config
    gone = [*SMALL, f"train.init_from={tmp_path / 'gone'}"]
    with pytest.raises(ConfigError, match="is no run, no checkpoint of one"):
        load_designed(gone)
    stored = begun.model_dump(mode="json")
    stored["train"]["init_from"] = str(tmp_path / "gone")
    assert config_id(load_designed(gone, begun=stored).config) == config_id(begun)
    with pytest.raises(ConfigError, match="is no run"):  # the settings of a run that began from another place
        load_designed(gone, begun=begun.model_dump(mode="json"))


def test_a_checkpoint_that_is_gone_is_named(dense: RunDir) -> None:
    with pytest.raises(RecordError, match="images_000000000999 holds no complete checkpoint"):
        find_parent(dense.checkpoint(999), "ema")


def test_every_tensor_begins_somehow(dense: RunDir) -> None:
    config = load_designed([*SMALL, "routing.unconditional_expert=True", f"train.init_from={dense.path}"]).config
    found = beginnings(config, require_parent_fits(config, find_parent(dense.path, "ema")))
    changed = {name: beginning for name, beginning in found.items() if beginning != "taken"}
    assert changed == {
        "blocks.1.ffn.router.weight_DE": "new",
        "blocks.1.ffn.experts.w_in_EFD": "copied",
        "blocks.1.ffn.experts.w_out_EFD": "copied",
        "blocks.1.ffn.unconditional.w_in.weight": "copied",
        "blocks.1.ffn.unconditional.w_out.weight": "copied",
    }


def test_an_iso_active_dense_run_must_fit_too(dense: RunDir) -> None:
    with pytest.raises(ConfigError, match=r"model.ffn_factor=.* does not fit train.init_from"):
        load_designed([*SMALL, "ecdit.iso_activation=ffn_factor", f"train.init_from={dense.path}"])


# Another resolution.


def test_another_resolution_keeps_the_grid_and_shifts_t(dense: RunDir) -> None:
    words = [*SMALL, "routing=dense", "data.image_size=64", f"train.init_from={dense.path}"]
    config = load_designed(words).config
    assert (config.model.position_side, config.flow.time_shift) == (8, 2.0)
    given = load_designed([*words, "model.position_side=16", "flow.time_shift=1.5"]).config
    assert (given.model.position_side, given.flow.time_shift) == (16, 1.5)
    same = load_designed([*SMALL, "routing=dense", f"train.init_from={dense.path}"]).config
    assert (same.model.position_side, same.flow.time_shift) == (None, 1.0)


def test_a_chain_of_resolutions_keeps_the_first_grid(tmp_path: Path) -> None:
    middle = random_run_folder(
        tmp_path / "middle", "routing=dense", "data.image_size=64", "model.position_side=8", "flow.time_shift=2"
    )
    for size, shift in ((64, 2.0), (128, 4.0)):
        words = [*SMALL, "routing=dense", f"data.image_size={size}", f"train.init_from={middle.path}"]
        config = load_designed(words).config
        assert (config.model.position_side, config.flow.time_shift) == (8, shift)


def test_the_shift_of_training_is_equation_23_as_in_sampling() -> None:
    plain, shifted = (load_config(["train.batch_images=64", f"flow.time_shift={shift}"]) for shift in (1, 2))
    time_B, there_B = (TrainStream(config).batch(0).time_B for config in (plain, shifted))
    torch.testing.assert_close(there_B, 2 * time_B / (1 + time_B))
    assert objective_of(shifted.flow).grid(4, shifted.flow.time_shift)[1] == pytest.approx(2 * 0.75 / 1.75)
    mean_time = OBJECTIVES[plain.flow.objective].mean_time
    assert mean_time(shifted.flow) > mean_time(plain.flow)


def test_an_objective_that_reads_no_shift_gets_none(tmp_path: Path) -> None:
    run = random_run_folder(tmp_path / "run", "routing=dense", "flow.objective=ddpm")
    words = [*SMALL, "routing=dense", "flow.objective=ddpm", "data.image_size=64", f"train.init_from={run.path}"]
    config = load_designed(words).config
    assert (config.model.position_side, config.flow.time_shift) == (8, 1.0)


def test_interpolated_positions_are_those_of_the_parent_at_the_same_places() -> None:
    before, after = sinusoidal_positions(32, 8).view(8, 8, 32), sinusoidal_positions(32, 16, span=8).view(16, 16, 32)
    torch.testing.assert_close(after[::2, ::2], before)
    assert torch.equal(sinusoidal_positions(32, 8, span=8).view(8, 8, 32), before)
