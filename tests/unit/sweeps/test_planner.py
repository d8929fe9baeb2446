"""From a sweep file to runs: each config once, cheap ones first, what the command line says on top."""

from __future__ import annotations

import pytest

from experiments.config.budget import budget
from experiments.config.identity import config_id
from experiments.config.overrides import load_config
from experiments.errors import ConfigError
from sweeps.planner import make_plan, with_unique_names


def test_combinations_with_the_same_config_are_one_run(grid):
    plan = make_plan(grid(routing__name=["dense", "expert_choice"], routing__num_experts=[4, 8, 16]))
    assert len(plan.runs) == 4  # dense has no experts: one run instead of three
    assert plan.num_merged == 2


def test_cheap_runs_come_first_and_equal_ones_in_the_order_of_the_grid(grid):
    plan = make_plan(grid(model__name=["micro", "nano"], seed=[2, 0, 1]))
    assert [(run.config["model"]["name"], run.config["seed"]) for run in plan.runs] == [
        (model, seed) for model in ("nano", "micro") for seed in (2, 0, 1)
    ]
    assert [run.train_flops for run in plan.runs] == sorted(run.train_flops for run in plan.runs)


def test_an_override_replaces_a_swept_parameter(grid):
    plan = make_plan(grid(model__name=["nano", "micro"], seed=[0, 1]), ["model=mini", "train.images=320"])
    assert [run.config["model"]["name"] for run in plan.runs] == ["mini", "mini"]
    assert {run.images for run in plan.runs} == {320}
    assert plan.num_merged == 0


def test_an_arm_sets_several_settings_together(grid):
    plan = make_plan(grid(arm=["routing.name=dense", "routing.name=dense model.ffn_factor=6"]))
    assert [run.config["model"]["ffn_factor"] for run in plan.runs] == [4.0, 6.0]


def test_runs_are_grouped_by_their_sweep_unless_told_otherwise(grid):
    assert make_plan(grid(seed=0)).runs[0].config["wandb"]["group"] == "small"
    assert make_plan(grid(seed=0), ["wandb.group=mine"]).runs[0].config["wandb"]["group"] == "mine"


def test_the_stored_config_is_complete_and_reads_back_as_the_same_run(grid, folder):
    for run in make_plan(grid(routing__name=["dense", "switch", "expert_choice"], optim__learning_rate=1e-5)).runs:
        config = load_config(file=folder.write_config(run))
        assert config_id(config) == run.config_id
        assert config.model_dump(mode="json") == run.config


def test_costs_are_those_of_the_budget(grid):
    run = make_plan(grid(seed=0, train__images=640)).runs[0]
    cost = budget(load_config(["train.images=640"]))
    assert (run.params_total, run.params_active) == (cost.params_total, cost.params_active)
    assert run.train_flops == 640 * cost.train_flops_per_image


def test_a_setting_that_does_not_exist_is_named_with_its_combination(grid):
    with pytest.raises(ConfigError, match=r"'train\.imags' .*In the combination seed=0 train\.imags=1\."):
        make_plan(grid(seed=[0, 1], train__imags=1))


def test_runs_whose_short_names_collide_get_longer_ones(grid):
    runs = make_plan(grid(seed=[0, 1])).runs
    collided = with_unique_names([run.model_copy(update={"name": "nano-abcdef"}) for run in runs])
    assert [run.name for run in collided] == [f"nano-abcdef{run.config_id[6:]}" for run in runs]
    assert with_unique_names(runs) == runs
