"""A run that begins from the weights of another one: what it takes, and that its first loss is the parent's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.config.designs import load_designed
from experiments.config.initial_weights import function_changes, require_parent_fits
from experiments.config.overrides import load_config
from experiments.config.routers import trained_names
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.evaluation.exchange.exported_weights import export_weights
from experiments.evaluation.sampling.load_run import load_run
from experiments.models.dit import DiT
from experiments.records.parent_weights import find_parent
from experiments.records.run_folder import RunDir
from experiments.routing.state import RunningThreshold, SelectionBias
from experiments.training.engine import Engine, build_engine
from experiments.training.first_weights import FirstWeights, begin_from
from experiments.training.objective import forward_loss
from experiments.training.reporter import Reporter
from tests.training_runs import random_run_folder

SMALL = ("model=nano", "model.width=32", "model.num_layers=2", "train.precision=fp32")
DENSE = (*SMALL, "routing=dense")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(tmp_path_factory.mktemp("dense") / "run", *DENSE)


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(
        tmp_path_factory.mktemp("routed") / "run", *SMALL, "routing=loss_free", "routing.num_experts=4"
    )


@pytest.fixture(scope="module")
def with_thresholds(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(
        tmp_path_factory.mktemp("thresholds") / "run", *SMALL, "routing=expert_threshold", "routing.num_experts=4"
    )


def child(parent: RunDir | Path, *settings: str) -> RunConfig:
    path = parent.path if isinstance(parent, RunDir) else parent
    return load_designed([*SMALL, *settings, f"train.init_from={path}"]).config


@pytest.fixture
def begun(one_process: None) -> Callable[[RunConfig], Engine]:
    def begin(config: RunConfig) -> Engine:
        engine = build_engine(config, "fp32")
        begin_from(FirstWeights(config), engine, Reporter())
        return engine

    return begin


def weights_of(engine: Engine) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in engine.model.named_parameters()}


def parent_weights(run: RunDir, weights: str = "ema") -> dict[str, Tensor]:
    return {name: each.detach() for name, each in load_run(run, weights, print).model.named_parameters()}


def first_loss(model: DiT, config: RunConfig) -> float:
    """The velocity loss of the first batch, in training mode."""
    batch = TrainStream(config).batch(0)
    with torch.no_grad():
        loss_B, _ = forward_loss(model.train(), batch, config)
    return float(loss_B.mean())


def first_losses(parent: RunDir, config: RunConfig, engine: Engine) -> tuple[float, float]:
    return first_loss(load_run(parent, "ema", print).model, config), first_loss(engine.model, config)


# Of every router: gelu experts as wide as the dense feed-forward, with gates that add up to 1 where the router can.


def upcycling_of(name: str) -> list[str]:
    settings = [f"routing={name}"]
    if name == "dense":
        return settings
    base = load_config([*SMALL, *settings]).routing
    if base.expert is not None:
        settings += ["routing.expert=gelu", "routing.expert_factor=4"]
    tokens_choose = base.top_k is not None and base.expert is not None
    if tokens_choose and name != "switch":
        settings += ["routing.capacity_factor=None", "routing.eval_capacity_factor=None"]
        if base.top_k != 1 and base.gating != "identity" and name not in ("token_choice", "st_moe"):
            settings += ["routing.gate_norm=token"]
    return settings


UNCHANGED = {
    "dense", "token_choice", "shared_expert", "st_moe", "loss_free", "dsmoe", "timestep_experts", "hash", "random",
    "switch_dit",
}  # fmt: skip
"""The routers under which a token's gates add up to 1, so that upcycling changes no function. The gates of the others
are not normalised, or leave tokens without an expert."""


@pytest.mark.parametrize("name", ["dense", *trained_names()])
def test_the_first_loss_of_an_upcycled_run_is_that_of_dense_where_its_gates_allow(
    dense: RunDir, begun: Callable[[RunConfig], Engine], name: str
) -> None:
    config = child(dense, *upcycling_of(name))
    because = function_changes(config, require_parent_fits(config, find_parent(dense.path, "ema")))
    expected, found = first_losses(dense, config, begun(config))
    assert (because is None) == (name in UNCHANGED), because
    if because is None:
        assert found == pytest.approx(expected, rel=1e-5)
    else:
        assert found != pytest.approx(expected, rel=1e-5)


FULL = ("routing=expert_choice", "routing.num_experts=4", "routing.capacity_factor=4")
SPLIT = (
    "routing=token_choice", "routing.num_experts=8", "routing.expert_factor=2", "routing.capacity_factor=None",
    "routing.eval_capacity_factor=None", "train.init_experts=split",
)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        FULL,
        (*FULL, "routing.gate_scale=2.0"),
        (*FULL, "train.init_experts=drop", "train.init_drop=0.0"),
        (*FULL, "routing.shared_factor=2.0"),
        (*FULL, "routing.expert_bias=True"),
        (*FULL, "routing.unconditional_expert=True"),
        (*FULL, "train.init_experts=split", "routing.expert_factor=1"),
        SPLIT,
        (*SPLIT, "routing.top_k=4", "routing.form=mlp"),
        (*SPLIT[1:], "routing=loss_free", "routing.gate_norm=token", "routing.gate_scale=2.0"),
        (*FULL, "optim.parametrization=mup", "model.base_width=16"),
    ],
    ids=lambda settings: " ".join(settings),
)  # fmt: skip
def test_other_upcycling_keeps_the_function_too(
    dense: RunDir, begun: Callable[[RunConfig], Engine], settings: tuple[str, ...]
) -> None:
    config = child(dense, *settings)
    assert function_changes(config, require_parent_fits(config, find_parent(dense.path, "ema"))) is None
    expected, found = first_losses(dense, config, begun(config))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("routing=token_choice",), "routing.capacity_factor=2 may drop tokens"),
        (("routing=expert_choice",), "with routing.name=expert_choice some tokens have no expert"),
        (("routing=switch", "routing.capacity_factor=None", "routing.eval_capacity_factor=None"),
         "the gates of a token do not add up to 1"),
        ((*SPLIT, "routing.top_k=3"), "routing.top_k=3 does not take all 2 parts of a feed-forward"),
        ((*FULL, "train.init_experts=drop"), "experts have train.init_drop=0.5 of their hidden units drawn anew"),
        ((*FULL, "train.init_experts=noise"), "experts are copies with noise of train.init_noise=0.01"),
        ((*FULL, "train.init_experts=split", "routing.expert_factor=1", "routing.unconditional_expert=True"),
         "the unconditional expert is as narrow as a part of a feed-forward"),
        (("routing=dense", "data.image_size=64"), "images have 256 tokens in place of 64"),
    ],
)  # fmt: skip
def test_the_run_says_why_its_first_loss_differs(
    dense: RunDir, begun: Callable[[RunConfig], Engine], settings: tuple[str, ...], reason: str
) -> None:
    config = child(dense, *settings)
    said: list[str] = []
    begin_from(FirstWeights(config), begun(config), Reporter(warn=said.append))
    name = dense.read_run().name
    assert said[0].startswith(f"First weights: ema of {name} after 640 images, tensors taken: ")
    assert said[1] == f"The first loss differs from that of {name}: {reason}."


@pytest.mark.parametrize(
    ("parent", "settings", "reason"),
    [
        ("routed", ("routing=loss_free", "routing.form=mlp"), "routing.form is mlp in place of linear"),
        ("routed", ("routing=loss_free", "routing.gate_norm=token"), "routing.gate_norm is token in place of none"),
        ("routed", ("routing=loss_free", "routing.z_loss_weight=0.1", "routing.expert_bias=True"), None),
        ("with_thresholds", ("routing=expert_threshold", "routing.threshold_decay=0.9"), None),
        ("with_thresholds", ("routing=expert_choice", "routing.expert_factor=2", "routing.shared_factor=2"),
         "routing.name is expert_choice in place of expert_threshold"),
        ("with_thresholds", ("routing=expert_threshold", "routing.threshold_warmup_images=0"),
         "routing.threshold_warmup_images is 0 in place of 3200"),
    ],
)  # fmt: skip
def test_settings_that_are_stored_only_where_they_are_used_are_compared(
    parent: str, settings: tuple[str, ...], reason: str | None, request: pytest.FixtureRequest
) -> None:
    run: RunDir = request.getfixturevalue(parent)
    config = child(run, "routing.num_experts=4", *settings)
    assert function_changes(config, require_parent_fits(config, find_parent(run.path, "ema"))) == reason


def test_experts_are_copies_of_the_dense_feed_forward(dense: RunDir, begun: Callable[[RunConfig], Engine]) -> None:
    found, theirs = weights_of(begun(child(dense, *FULL))), parent_weights(dense)
    for expert in range(4):
        assert torch.equal(found["blocks.1.ffn.experts.w_in_EFD"][expert], theirs["blocks.1.ffn.w_in.weight"])
        assert torch.equal(found["blocks.1.ffn.experts.w_out_EFD"][expert], theirs["blocks.1.ffn.w_out.weight"].T)
    assert torch.equal(found["blocks.0.ffn.w_in.weight"], theirs["blocks.0.ffn.w_in.weight"])
    assert torch.equal(found["head.weight"], theirs["head.weight"])


def test_new_shared_experts_of_image_and_text_tokens_begin_with_the_output_0(
    begun: Callable[[RunConfig], Engine], tmp_path: Path
) -> None:
    routed = (
        "routing=expert_choice", "routing.num_experts=4", "routing.text_experts=2", "model.block=mmdit",
        "model.sparse_layers=all",
    )  # fmt: skip
    parent = random_run_folder(tmp_path / "run", *SMALL, *routed)
    weights = weights_of(begun(child(parent, *routed, "routing.shared_factor=1")))
    shared = {name: weight for name, weight in weights.items() if name.endswith("ffn.shared.w_out.weight")}
    assert {name.split(".")[2] for name in shared} == {"ffn", "text_ffn"}
    assert not any(weight.any() for weight in shared.values())


def test_noise_is_relative_to_the_weights_and_of_each_expert(
    dense: RunDir, begun: Callable[[RunConfig], Engine]
) -> None:
    config = child(dense, *FULL, "train.init_experts=noise", "train.init_noise=0.1")
    stacked, matrix = (
        weights_of(begun(config))["blocks.1.ffn.experts.w_in_EFD"],
        parent_weights(dense)["blocks.1.ffn.w_in.weight"],
    )
    noise = (stacked - matrix) / matrix.std()
    assert noise.std(dim=(1, 2)).tolist() == pytest.approx([0.1] * 4, rel=0.05)
    assert abs(float(torch.corrcoef(noise.flatten(1))[0, 1])) < 0.1


def test_dropped_units_are_drawn_anew_for_each_expert_in_both_of_its_matrices(
    dense: RunDir, begun: Callable[[RunConfig], Engine]
) -> None:
    """Half of them, as Drop-Upcycling says: normal, with the mean and deviation of the weights that they replace."""
    found, theirs = weights_of(begun(child(dense, *FULL, "train.init_experts=drop"))), parent_weights(dense)
    block, chosen = "blocks.1.ffn.", []
    for old_FD, stacked_EFD in (
        (theirs[f"{block}w_in.weight"], found[f"{block}experts.w_in_EFD"]),
        (theirs[f"{block}w_out.weight"].T, found[f"{block}experts.w_out_EFD"]),
    ):
        anew_EF = (stacked_EFD != old_FD).all(dim=2)
        assert torch.equal(anew_EF, (stacked_EFD != old_FD).any(dim=2))  # a unit is kept whole, or not at all
        assert anew_EF.sum(dim=1).tolist() == [len(old_FD) // 2] * 4
        for drawn_FD, units_F in zip(stacked_EFD, anew_EF, strict=True):
            before, after = old_FD[units_F], drawn_FD[units_F]
            assert float(after.std() / before.std()) == pytest.approx(1, abs=0.1)
            assert float((after.mean() - before.mean()) / before.std()) == pytest.approx(0, abs=0.1)
            assert abs(float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1])) < 0.1
        chosen.append(anew_EF)
    assert torch.equal(*chosen)
    assert len({tuple(units_F.tolist()) for units_F in chosen[0]}) == 4


def test_a_carried_optimizer_has_no_state_of_units_drawn_anew(dense: RunDir) -> None:
    raw = ("train.init_optimizer=carried", "train.init_weights=raw", "train.init_experts=drop")
    first, name = FirstWeights(child(dense, *FULL, *raw)), "blocks.1.ffn.experts.w_in_EFD"
    rows_FD = torch.randn(128, 32)
    state_FD, drawn_FD = (first._upcycled(name, rows_FD, 0, kind).view(128, 32) for kind in ("exp_avg", ""))
    assert int((state_FD == 0).all(dim=1).sum()) == 64
    assert torch.equal(state_FD == 0, drawn_FD != rows_FD)


def test_the_parts_of_split_experts_are_disjoint_and_repeat(
    dense: RunDir, begun: Callable[[RunConfig], Engine]
) -> None:
    found, theirs = weights_of(begun(child(dense, *SPLIT))), parent_weights(dense)
    stacked = found["blocks.1.ffn.experts.w_in_EFD"]
    assert torch.equal(torch.cat([stacked[0], stacked[1]]), theirs["blocks.1.ffn.w_in.weight"])
    assert torch.equal(stacked[0::2], stacked[:1].expand(4, -1, -1))
    router_DE = found["blocks.1.ffn.router.weight_DE"]
    assert torch.equal(router_DE[:, 0::2], router_DE[:, 1::2])
    assert not torch.equal(router_DE[:, 0], router_DE[:, 2])


def test_more_experts_take_those_of_the_parent_and_its_columns(
    routed: RunDir, begun: Callable[[RunConfig], Engine]
) -> None:
    config = child(routed, "routing=loss_free", "routing.num_experts=10")
    torch.manual_seed(config.seed)
    drawn = dict(DiT(config).named_parameters())["blocks.1.ffn.router.weight_DE"]
    found, theirs = weights_of(begun(config)), parent_weights(routed)
    stacked, known = found["blocks.1.ffn.experts.w_out_EFD"], theirs["blocks.1.ffn.experts.w_out_EFD"]
    assert torch.equal(stacked, torch.cat([known, known, known[:2]]))
    router_DE = found["blocks.1.ffn.router.weight_DE"]
    assert torch.equal(router_DE[:, :4], theirs["blocks.1.ffn.router.weight_DE"])
    assert torch.equal(router_DE[:, 4:], drawn[:, 4:])
    record = FirstWeights(config).as_record()
    assert record.tensors is not None
    assert record.tensors["copied"] == {"experts": 2}
    assert record.tensors["extended"] == {"router": 1}
    assert "new" not in record.tensors


def test_another_router_takes_what_fits(routed: RunDir, begun: Callable[[RunConfig], Engine]) -> None:
    config = child(routed, "routing=soft_moe", "routing.num_experts=4")
    found, theirs = weights_of(begun(config)), parent_weights(routed)
    name = "blocks.1.ffn.experts.w_in_EFD"
    assert torch.equal(found[name], theirs[name])
    tensors = FirstWeights(config).as_record().tensors
    assert tensors is not None
    assert tensors["new"] == {"router": 2}


def test_the_same_router_keeps_its_state(routed: RunDir, begun: Callable[[RunConfig], Engine]) -> None:
    stored = load_run(routed, "ema", print).model.state_dict()["blocks.1.ffn.router.state.value_E"]
    state = "blocks.1.ffn.router.state.value_E"
    same = begun(child(routed, "routing=loss_free", "routing.num_experts=4"))
    assert torch.equal(same.model.state_dict()[state], stored)
    assert stored.any()
    more = begun(child(routed, "routing=loss_free", "routing.num_experts=8"))
    assert not more.model.state_dict()[state].any()


@pytest.mark.parametrize(
    ("settings", "is_taken"),
    [
        ((), True),
        (("routing.threshold_decay=0.9", "routing.z_loss_weight=0.001"), True),
        (("routing.capacity_factor=2",), False),
        (("routing.input=plain_time",), False),
        (("routing.form=mlp",), False),
    ],
)
def test_thresholds_of_other_scores_or_another_capacity_are_learned_anew(
    settings: tuple[str, ...], is_taken: bool, with_thresholds: RunDir, begun: Callable[[RunConfig], Engine]
) -> None:
    config = child(with_thresholds, "routing=expert_threshold", "routing.num_experts=4", *settings)
    (state,) = (module for module in begun(config).model.modules() if isinstance(module, RunningThreshold))
    assert state.has_begun is is_taken
    assert bool(state.value_K.any()) is is_taken


@pytest.mark.parametrize(
    ("setting", "is_taken"),
    [
        ("routing.top_k=1", True),
        ("routing.capacity_factor=2", True),
        ("routing.gating=softmax", False),
        ("routing.input=plain_time", False),
    ],
)
def test_a_bias_on_scores_of_another_kind_is_learned_anew(
    setting: str, is_taken: bool, routed: RunDir, begun: Callable[[RunConfig], Engine]
) -> None:
    model = begun(child(routed, "routing=loss_free", "routing.num_experts=4", setting)).model
    (state,) = (module for module in model.modules() if isinstance(module, SelectionBias))
    assert bool(state.value_E.any()) is is_taken


def test_raw_weights_and_exported_ones(dense: RunDir, begun: Callable[[RunConfig], Engine], tmp_path: Path) -> None:
    raw = begun(child(dense, *FULL, "train.init_weights=raw"))
    assert torch.equal(weights_of(raw)["head.weight"], parent_weights(dense, "raw")["head.weight"])
    export_weights(dense, tmp_path / "weights", "ema", "fp32", 2**30, print)
    exported = begun(child(tmp_path / "weights", *FULL))
    for name, tensor in weights_of(begun(child(dense, *FULL))).items():
        assert torch.equal(weights_of(exported)[name], tensor)


def test_moving_averages_begin_as_the_weights_that_were_loaded(
    dense: RunDir, begun: Callable[[RunConfig], Engine]
) -> None:
    engine = begun(child(dense, *FULL, "train.ema=power"))
    for averages in engine.ema.averages:
        for average, weights in zip(averages, engine.partitions.flats, strict=True):
            assert torch.equal(average, weights.detach())
