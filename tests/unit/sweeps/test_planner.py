"""From a sweep file to runs: each config once, cheap ones first, what the command line says on top."""

from __future__ import annotations

import pytest

from experiments.config.budget import budget
from experiments.config.identity import config_id
from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from sweeps.planner import Costs, make_plan, with_unique_names
from sweeps.spec import parse_spec
from tests.training_runs import random_run_folder


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


@pytest.mark.parametrize("word", ["arm=routing=expert_choice", "--arm=routing=expert_choice"])
def test_an_arm_on_the_command_line_replaces_those_of_the_file(grid, word):
    plan = make_plan(grid(arm=["routing=dense model.ffn_factor=6", "routing=switch"], seed=0), [word])
    assert [run.config_id for run in plan.runs] == [config_id(load_config(["routing=expert_choice"]))]
    assert plan.num_merged == 0


def test_an_override_replaces_a_parameter_in_its_short_form(grid):
    for word in ("model=mini", "model.name=mini"):
        plan = make_plan(grid(model=["nano", "micro"], seed=[0, 1]), [word])
        assert [run.config["model"]["name"] for run in plan.runs] == ["mini", "mini"]
        assert plan.num_merged == 0
    drawn = random_spec(3, **SEEDS, model={"values": ["nano", "micro"]})
    assert next(drawn.combinations({"model.name"}))[0].startswith("seed=")


def test_an_arm_sets_several_settings_together(grid):
    plan = make_plan(grid(arm=["routing.name=dense", "routing.name=dense model.ffn_factor=6"]))
    assert [run.config["model"]["ffn_factor"] for run in plan.runs] == [4.0, 6.0]


def test_a_grid_varies_the_placement_of_experts_in_every_form(grid):
    plan = make_plan(grid(model__sparse_layers=["alternate", "1:-1", [3, 1], 2]))
    assert {run.config["model"]["sparse_layers"] for run in plan.runs} == {"alternate", "1:-1", "1,3", "2"}
    assert len({run.config_id for run in plan.runs}) == len(plan.runs)


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


def random_spec(run_cap, **parameters):
    content = {"program": "ecdit", "method": "random", "run_cap": run_cap, "parameters": parameters}
    return parse_spec(content, default_name="drawn")


LEARNING_RATE = {"optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}}
SEEDS = {"seed": {"min": 0, "max": 9}}


def ids(plan):
    return {run.config_id for run in plan.runs}


def test_a_random_sweep_is_the_same_every_time_and_as_long_as_asked():
    first, second = (make_plan(random_spec(20, **LEARNING_RATE, **SEEDS)) for _ in range(2))
    assert first == second
    assert len(ids(first)) == len(first.runs) == 20


def test_a_longer_random_sweep_holds_the_shorter_one_and_another_seed_holds_others():
    ten, twenty = (make_plan(random_spec(count, **LEARNING_RATE)) for count in (10, 20))
    assert ids(ten) < ids(twenty)
    assert not ids(ten) & ids(make_plan(random_spec(10, **LEARNING_RATE), ["ecdit.seed=1"]))


def test_a_random_sweep_draws_on_past_repetitions_and_ends_when_there_is_no_more():
    assert len(ids(make_plan(random_spec(10, **SEEDS)))) == 10
    assert len(ids(make_plan(random_spec(100, **SEEDS)))) == 10
    dense = {"routing.name": {"value": "dense"}, "routing.num_experts": {"min": 2, "max": 2000}, "seed": {"value": 0}}
    plan = make_plan(random_spec(3, **dense))  # every draw comes to the same config
    assert (len(plan.runs), plan.num_merged) == (1, 0)


def test_the_seed_of_the_draws_is_a_whole_number():
    with pytest.raises(ConfigError, match=r"ecdit\.seed=x is not a whole number"):
        make_plan(random_spec(1, **SEEDS), ["ecdit.seed=x"])


def test_iso_flop_runs_spend_their_budget_and_are_ordered_by_it(grid):
    plan = make_plan(grid(ecdit__train_flops=[2e11, 1e11], model__name=["micro", "nano"]))
    assert [run.train_flops_budget for run in plan.runs] == [1e11, 1e11, 2e11, 2e11]
    assert all(abs(run.train_flops_mismatch) < 0.1 for run in plan.runs)
    assert all(run.train_flops == run.train_flops_budget * (1 + run.train_flops_mismatch) for run in plan.runs)


@pytest.mark.parametrize(
    "varied",
    [
        {"train__repa_weight": [0.0, 0.5]},
        {"train__caption_dropout": [0.1, 0.5], "routing__unconditional_expert": True},
        {"routing__capacity_warmup_images": [0, 3200, 100_000]},
        {"routing__capacity_warmup_images": 3200, "ecdit__train_flops": [2e11, 1e12]},
    ],
)
def test_iso_flop_runs_spend_their_budget_whatever_else_the_sweep_varies(grid, varied):
    plan = make_plan(grid(**{"ecdit__train_flops": 1e12, **varied}))
    assert len(plan.runs) > 1
    for run in plan.runs:
        cost = budget(RunConfig.model_validate(run.config))
        a_batch = cost.train_flops_per_image * run.config["train"]["batch_images"]
        assert run.images * cost.train_flops_per_image == pytest.approx(run.train_flops_budget, abs=a_batch)
        assert run.train_flops_per_image == cost.train_flops_per_image


def test_images_on_the_command_line_replace_a_flop_budget_and_the_other_way_round(grid):
    plan = make_plan(grid(ecdit__train_flops=[1e11, 2e11]), ["train.images=64"])
    assert plan.num_merged == 0
    assert [(run.images, run.train_flops_budget) for run in plan.runs] == [(64, None)]
    back = make_plan(grid(train__images=64), ["ecdit.train_flops=1e11"])
    assert [run.train_flops_budget for run in back.runs] == [1e11]


def test_every_moe_arm_gets_a_dense_run_of_its_activated_parameters(grid):
    arms = ["routing.name=dense", "routing.name=switch", "routing.name=expert_choice routing.capacity_factor=4"]
    plan = make_plan(grid(arm=arms, ecdit__iso_activation=[None, "ffn_factor"]))
    by_name = {run.name: run for run in plan.runs}
    matched = [run for run in plan.runs if run.matched_run is not None]
    assert len(plan.runs) == 5  # dense is its own match
    assert {by_name[run.matched_run].config["routing"]["name"] for run in matched} == {"switch", "expert_choice"}
    for run in matched:
        assert run.config["routing"]["name"] == "dense"
        assert run.matched_params_active == by_name[run.matched_run].params_active
        assert abs(run.params_active_mismatch) < 0.002


def test_an_impossible_design_is_named_with_its_combination(grid):
    with pytest.raises(
        ConfigError, match=r"does not pay for half a batch .*In the combination ecdit\.train_flops=1000\.0"
    ):
        make_plan(grid(ecdit__train_flops=1e3))


def test_a_budget_is_computed_once_for_each_model_and_is_that_of_the_model():
    costs = Costs()
    for settings in (
        ["model=nano"],
        ["model=micro"],
        ["train.accumulation=4", "routing=switch"],
        ["train.mask_ratio=0.5"],
    ):
        one, other = (load_config([*settings, f"seed={seed}", f"optim.learning_rate={seed + 1}"]) for seed in (0, 1))
        assert costs(one) is costs(other)
        assert costs(one) == budget(one)


def test_no_setting_that_changes_a_budget_is_missing_from_the_key_of_its_cache(neighbours):
    costs, expected = Costs(), [budget(config) for _, config in neighbours]
    assert len({one.train_flops_per_image for one in expected}) > 20
    assert {"train.repa_weight", "train.caption_dropout", "train.images", "flow.learned_sigma"} <= dict(
        neighbours
    ).keys()
    assert [name for (name, config), one in zip(neighbours, expected, strict=True) if costs(config) != one] == []


def test_runs_may_begin_from_the_weights_of_another_one(grid, tmp_path):
    parent = random_run_folder(tmp_path / "dense", "routing=dense")
    begun = f"train.init_from={parent.path} model.num_layers=2 train.images=320"
    plan = make_plan(grid(arm=["model.num_layers=2 train.images=640", begun], seed=[0, 1]))
    fingerprints = [run.config["train"].get("init_fingerprint") for run in plan.runs]
    assert [fingerprint is not None for fingerprint in fingerprints] == [True, True, False, False]
    with pytest.raises(ConfigError, match=r"model\.width=32 does not fit .* In the combination arm="):
        make_plan(grid(arm=[f"{begun} model.width=32"]))
