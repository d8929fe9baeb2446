"""Arms are told apart by routing and width, settings by everything else, seeds by nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.arms import arm_list, in_order, with_arms
from analysis.baselines import baselines
from analysis.claims import arm_pairs
from analysis.laws.families import router_families
from analysis.load_records import load_records
from experiments.config.routers import ROUTERS, RouterRow, router_label

WriteArms = Callable[..., Path]
Arms = dict[str, tuple[dict[str, Any], dict[str, Any], float]]
DENSE = ({}, {"name": "dense"}, 1e-5)
EXPERT_CHOICE = ({}, {"name": "expert_choice"}, 1e-5)
NEARLY_EQUAL = (1.25, 1.25000001, 1.25000002)
"""Capacity factors that labels write alike."""


def arms_of(folder: Path) -> pd.DataFrame:
    return with_arms(load_records([folder]).runs)


def test_a_router_whose_plugin_is_not_loaded_is_called_by_its_name() -> None:
    assert router_label("switch") == "Switch"
    assert router_label("not_here") == "not_here"
    assert in_order(["b", "expert_choice", "a", "switch", "dense"]) == ["dense", "switch", "expert_choice", "a", "b"]


def test_runs_of_one_arm_differ_in_their_seed_alone(write_arms: WriteArms) -> None:
    table = arms_of(write_arms())
    assert table.groupby("arm")["seed"].nunique().to_dict() == dict.fromkeys(
        ["Dense (same depth)", "Dense (same activated)", "Token choice", "Expert choice"], 3
    )
    assert table["setup"].unique().tolist() == ["nano"]


def test_baselines_come_first_and_the_reference_is_dense_of_the_same_depth(write_arms: WriteArms) -> None:
    table = arms_of(write_arms())
    assert arm_list(table) == [
        ("Dense (same depth)", "dense", 0),
        ("Dense (same activated)", "dense", 1),
        ("Token choice", "token_choice", 0),
        ("Expert choice", "expert_choice", 0),
    ]
    assert baselines(table) == {label: "Dense (same depth)" for label, _, _ in arm_list(table)}


def test_a_wider_dense_model_that_matches_no_sparse_one_is_named_by_its_shape(write_arms: WriteArms) -> None:
    wide = ({"ffn_factor": 12.0}, {"name": "dense"}, 1e-5)
    table = arms_of(write_arms({"dense": DENSE, "wide": wide, "ec": EXPERT_CHOICE}, seeds=(0,)))
    assert set(table["arm"]) == {"Dense (same depth)", "Dense (feed-forward 12 wide, 4 layers)", "Expert choice"}


def test_same_depth_is_meant_literally(write_arms: WriteArms) -> None:
    deep = ({"num_layers": 9}, {"name": "dense"}, 1e-5)
    table = arms_of(write_arms({"deep": deep, "ec": EXPERT_CHOICE}, seeds=(0,)))
    assert baselines(table) == {}


def test_a_label_says_what_differs_between_the_arms_of_a_router(write_arms: WriteArms) -> None:
    arms = {
        f"{experts}-{group}": ({}, {"name": "expert_choice", "num_experts": experts, "group_images": group}, 1e-5)
        for experts, group in ((8, 1), (16, 1), (8, 4), (8, "batch"))
    }
    assert [label for label, _, _ in arm_list(arms_of(write_arms(arms, seeds=(0,))))] == [
        "Expert choice (8E, per image)",
        "Expert choice (8E, groups of 4)",
        "Expert choice (8E, whole batch)",
        "Expert choice (16E, per image)",
    ]


def test_placements_of_experts_are_arms_and_none_of_a_dense_model(write_arms: WriteArms) -> None:
    arms = {
        f"{router} {number}": ({"sparse_layers": placement}, {"name": router}, 1e-5)
        for router in ("dense", "expert_choice", "token_choice")
        for number, placement in enumerate(("alternate", "1:-1", "1,3"))
    }
    table = arms_of(write_arms(arms, seeds=(0,)))
    assert table["setup"].unique().tolist() == ["nano"]
    assert table["arm"].value_counts().to_dict() == {
        "Dense (same depth)": 1,
        **{f"{router} (sparse layers {placement})": 1 for router in ("Expert choice", "Token choice")
           for placement in ("alternate", "1:-1", "1,3")},
    }  # fmt: skip
    routed = [(arm, reference) for arm, reference in arm_pairs(table) if not reference.startswith("Dense")]
    assert sorted(reference.replace("Token", "Expert") for _, reference in routed) == sorted(arm for arm, _ in routed)
    assert all(arm.replace("Expert", "Token") == reference for arm, reference in routed)


def arms_along(name: str, values: Sequence[object], routers: Sequence[str] = ("dense", "expert_choice")) -> Arms:
    """An arm of each router for each value of a setting of the model."""
    return {f"{router} {value}": ({name: value}, {"name": router}, 1e-5) for router in routers for value in values}


def test_baselines_of_several_depths_are_arms_of_their_own(write_arms: WriteArms) -> None:
    table = arms_of(write_arms(arms_along("num_layers", (2, 4, 6)), seeds=(0, 1)))
    dense = [f"Dense (same depth), {layers} layers" for layers in (2, 4, 6)]
    routed = [f"Expert choice ({layers} layers)" for layers in (2, 4, 6)]
    assert table.groupby("arm")["seed"].nunique().to_dict() == dict.fromkeys([*dense, *routed], 2)
    assert table.groupby("arm")["model.num_layers"].nunique().max() == 1
    assert arm_pairs(table) == list(zip(routed, dense, strict=True))


def test_routers_are_compared_at_one_depth(write_arms: WriteArms) -> None:
    routers = ("expert_choice", "token_choice")
    table = arms_of(write_arms(arms_along("num_layers", (2, 4), routers), seeds=(0,)))
    pairs = [(f"Expert choice ({layers} layers)", f"Token choice ({layers} layers)") for layers in (2, 4)]
    assert arm_pairs(table) == pairs


@pytest.mark.parametrize(
    "arms",
    [
        arms_along("num_layers", (2, 4, 6, 8)),
        arms_along("ffn_factor", (2.0, 4.0, 6.0)),
        {str(factor): ({}, {"name": "expert_choice", "capacity_factor": factor}, 1e-5) for factor in NEARLY_EQUAL},
        {
            f"{layers} {factor}": ({"num_layers": layers, "ffn_factor": factor}, {"name": "dense"}, 1e-5)
            for layers in (2, 4) for factor in (2.0, 4.0)
        },
    ],
    ids=["depths", "widths", "hardly", "alone"],
)  # fmt: skip
def test_no_two_arms_of_a_setup_share_a_label(arms: Arms, write_arms: WriteArms) -> None:
    table = arms_of(write_arms(arms, seeds=(0,)))
    assert table["setup"].nunique() == 1
    assert table["arm"].is_unique
    assert len(table) == len(arms)


def test_a_setting_that_is_not_stored_and_one_that_is_none_are_one_arm(write_arms: WriteArms) -> None:
    runs = load_records([write_arms({"ec": EXPERT_CHOICE}, seeds=(0, 1))]).runs
    stored = pd.Series([None, float("nan")], index=runs.index, dtype=object)
    assert set(with_arms(runs.assign(**{"routing.top_k": stored}))["arm"]) == {"Expert choice"}


def test_biases_of_experts_are_an_arm_beside_runs_that_do_not_store_them(write_arms: WriteArms) -> None:
    arms = {str(bias): ({}, {"name": "switch", "expert_bias": bias}, 1e-5) for bias in (False, True)}
    table = arms_of(write_arms(arms, seeds=(0,)))
    assert set(table["arm"]) == {"Switch (expert bias False)", "Switch (expert bias True)"}


def test_numbers_of_processes_are_arms_where_routing_groups_follow_them(
    tmp_path: Path, write_run: Callable[..., object]
) -> None:
    for seed, world in enumerate((1, 4)):
        for router, group in (("dense", None), ("token_choice", "batch"), ("expert_choice", 8)):
            settings = {"routing": {"name": router, "group_images": group}, "parallel": {"world": world}, "seed": seed}
            train = {"train": {"images": 3200, "batch_images": 32}, "eval": {"every_images": 3200}}
            write_run(tmp_path / f"{router}-{world}", settings | train, lambda images: 1.0)
    assert arms_of(tmp_path)["arm"].value_counts().to_dict() == {
        "Dense (same depth)": 2, "Expert choice": 2, "Token choice (world 1)": 1, "Token choice (world 4)": 1,
    }  # fmt: skip


def test_a_law_in_experts_has_a_family_for_each_placement(write_arms: WriteArms) -> None:
    arms = {
        f"{number} {experts}": ({"sparse_layers": placement}, {"name": "expert_choice", "num_experts": experts}, 1e-5)
        for number, placement in enumerate(("alternate", "1:-1"))
        for experts in (4, 8)
    }
    families = dict(router_families(arms_of(write_arms(arms, seeds=(0,)))))
    assert {name: sorted(runs["routing.num_experts"]) for name, runs in families.items()} == {
        f"Expert choice, f_c 2, per image, sparse layers {placement}": [4, 8] for placement in ("alternate", "1:-1")
    }


@pytest.mark.parametrize("router", ["dense", "dit_moe"])
def test_imports_of_other_weights_are_arms_and_no_copies(
    router: str, tmp_path: Path, write_imported: Callable[..., object], write_run: Callable[..., object]
) -> None:
    settings = {"model": {"name": "nano", "block": "dit"}, "routing": {"name": router}}
    write_run(tmp_path / "trained", settings, lambda images: 1.0)
    imports = (("a", "ema"), ("a", "raw"), ("b", None), ("b", None))
    for number, (letter, weights) in enumerate(imports, 1):
        about = {"sha256": 64 * letter, "weights": weights, "created_at": f"2026-02-0{number}T00:00:00Z"}
        write_imported(tmp_path / str(number), settings, **about)
    records = load_records([tmp_path])
    assert [str(each) for each in records.left_out] == [
        f"{tmp_path / '4'}: it has the same settings and seed as {tmp_path / '3'}"
    ]
    assert records.runs["config_id"].nunique() == 1
    origins = {"trained here", "weights aaaaaaaaaaaa ema", "weights aaaaaaaaaaaa raw", "weights bbbbbbbbbbbb"}
    assert len(arms := with_arms(records.runs)["arm"]) == 4
    if router == "dense":
        assert set(arms) == {f"Dense (same depth), {origin}" for origin in origins}
    else:
        assert {arm.split("(")[1].rstrip(")") for arm in arms} == origins


def test_an_arm_has_one_number_in_every_setting(write_arms: WriteArms) -> None:
    table = arms_of(write_arms(presets=("nano", "micro")))
    assert (table.groupby("arm")["variant"].nunique() == 1).all()
    assert table["setup"].unique().tolist() == ["nano", "micro"]


@pytest.mark.parametrize(
    ("other", "settings"),
    [
        ({"optim": {"learning_rate": 1e-4}}, {"nano, optim.learning_rate=0.0001", "nano, optim.learning_rate=0.002"}),
        ({"train": {"images": 3200}}, {"nano, 3,200 images", "nano, 6,400 images"}),
        ({"wandb": {"mode": "offline"}, "seed": 1}, {"nano"}),
        (
            {"optim": {"parametrization": "mup"}, "model": {"name": "nano", "base_width": 32}},
            {
                "nano, model.base_width=None, optim.parametrization=standard",
                "nano, model.base_width=32, optim.parametrization=mup",
            },
        ),
    ],
)
def test_another_learning_rate_or_horizon_is_another_setting_and_no_seed(
    other: dict[str, object], settings: set[str], tmp_path: Path, write_run: Callable[..., object]
) -> None:
    usual = {"routing": {"name": "dense"}, "train": {"images": 6400}, "eval": {"every_images": 3200}}
    write_run(tmp_path / "usual", usual, lambda images: 1.0)
    write_run(tmp_path / "other", usual | other, lambda images: 1.0)
    table = arms_of(tmp_path)
    assert set(table["setup"]) == settings
    assert set(table["arm"]) == {"Dense (same depth)"}


def test_what_a_run_was_computed_in_is_another_setup_and_no_seed(
    tmp_path: Path, write_run: Callable[..., object]
) -> None:
    """`train.precision` is `auto` in two of them, which became bf16 on an accelerator."""
    given = (("auto", "fp32"), ("auto", "bf16"), ("fp32", "fp32"))
    for seed, (setting, precision) in enumerate(given):
        train = {"images": 3200, "precision": setting}
        settings = {"routing": {"name": "dense"}, "train": train, "eval": {"every_images": 3200}, "seed": seed}
        write_run(tmp_path / str(seed), settings, lambda images: 1.0, precision=precision)
    table = arms_of(tmp_path)
    assert set(table["arm"]) == {"Dense (same depth)"}
    assert table.groupby("setup")["seed"].apply(sorted).to_dict() == {
        "nano, train.precision=fp32": [0, 2], "nano, train.precision=bf16": [1],
    }  # fmt: skip


def test_a_comparison_of_widths_names_the_parametrization_that_all_of_them_share(
    tmp_path: Path, write_run: Callable[..., object]
) -> None:
    for width in (32, 64):
        model = {"name": "nano", "width": width, "base_width": 32}
        settings = {"model": model, "routing": {"name": "dense"}, "optim": {"parametrization": "mup"}}
        write_run(tmp_path / str(width), settings, lambda images: 1.0)
    labels = {f"nano, model.width={width}, optim.parametrization=mup" for width in (32, 64)}
    assert set(arms_of(tmp_path)["setup"]) == labels


def test_two_versions_of_a_plugin_are_two_arms_also_where_it_is_not_loaded(
    write_run: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROUTERS, "mine", RouterRow("mine", label="Mine", implementation="mine:Mine"))
    for number, (name, letter) in enumerate([("dense", ""), ("mine", "a"), ("mine", "a"), ("mine", "b")]):
        plugin = {"kind": "router", "name": name, "sha256": 64 * letter, "source": "plugin mine.py"}
        settings = {"model": {"name": "nano"}, "routing": {"name": name}, "seed": number % 3}
        write_run(tmp_path / str(number), settings, lambda images: 1.0, plugins=[plugin] if letter else None)
    labels = {"Mine (routing.plugin=aaaaaaaaaaaa)": 2, "Mine (routing.plugin=bbbbbbbbbbbb)": 1}
    assert arms_of(tmp_path)["arm"].value_counts().to_dict() == labels | {"Dense (same depth)": 1}
    monkeypatch.delitem(ROUTERS, "mine")
    without = {label.replace("Mine", "mine"): count for label, count in labels.items()}
    assert arms_of(tmp_path)["arm"].value_counts().to_dict() == without | {"Dense (same depth)": 1}
    assert [router for _, router, _ in arm_list(arms_of(tmp_path))] == ["dense", "mine", "mine"]
