"""Tuning of arms: which proxies there are, which value wins, when a grid grows, and what the study's plan says."""

from __future__ import annotations

import math

import pytest

from experiments.errors import ConfigError, SpecError
from sweeps.planner import make_plan
from sweeps.progress import read_sweep
from sweeps.runner import freeze_plan
from sweeps.tuning import FIRST_SEED, preview, tuning_of, untuned_plan

RATES = [1e-3, 2e-3, 4e-3]
TUNE = {"optim.learning_rate": RATES, "on": {"train.images": 640}, "seeds": 2}
STUDY = {"seed": [0, 1, 2], "train__images": 1280, "eval__every_images": 320}


def rate_of(run):
    return run.config["optim"]["learning_rate"]


def distance_from(best):
    """A loss that is lowest at the rate `best`, and differs a little between seeds."""
    return lambda run: 0.5 + abs(math.log2(rate_of(run) / best)) + 0.01 * (run.config["seed"] - FIRST_SEED)


@pytest.fixture
def tuned(grid, folder):
    """The plan of a sweep with `ecdit.tune`, not tuned yet, and its tuning; what is given replaces the usual."""

    def make(tune=TUNE, **parameters):
        plan = make_plan(grid(**{**STUDY, "routing__name": ["dense", "switch"], **parameters, "ecdit__tune": tune}))
        return plan, tuning_of(folder, plan)

    return make


@pytest.fixture
def train(write_run):
    """Trains the proxies of a survey that are not there yet; a loss of None is a run that diverged."""

    def trained(tuning, loss_of):
        plan = freeze_plan(tuning.folder, tuning.survey().plan)
        for run in plan.wanted:
            path, loss = tuning.folder.run_dir(run).path, loss_of(run)
            ending = {} if loss is not None else {"state": "failed", "reason": "Not finite after 64 images: blocks.1."}
            if not path.exists():
                write_run(path, run.config, lambda images, loss=loss: loss or 1.0, **ending)
        return tuning.survey()

    return trained


def train_to_the_end(train, tuning, loss_of):
    survey = tuning.survey()
    for _ in range(10):
        if survey.is_settled:
            return survey
        survey = train(tuning, loss_of)
    raise AssertionError("tuning has no end")


def test_a_proxy_is_the_arm_with_other_settings_at_every_value_and_seed(tuned):
    _, tuning = tuned()
    survey = tuning.survey()
    assert [arm.name for arm in survey.arms.values()] == ["nano-dense", "nano-switch-8e-k1-c1-gbatch"]
    assert len(survey.plan.runs) == 2 * len(RATES) * 2
    assert {run.images for run in survey.plan.runs} == {640}
    assert {run.config["seed"] for run in survey.plan.runs} == {FIRST_SEED, FIRST_SEED + 1}
    assert {rate_of(run) for run in survey.plan.runs} == set(RATES)
    assert {run.tunes for run in survey.plan.runs} == {"small"}
    assert {run.config["wandb"]["group"] for run in survey.plan.runs} == {"small-tuning"}
    assert not survey.is_settled
    assert not tuning.folder.path.exists()  # a survey writes nothing


def test_arms_with_the_same_proxy_share_their_value(tuned):
    _, tuning = tuned(train__images=[1280, 2560])  # the proxies have a length of their own
    assert len(tuning.survey().arms) == 2
    _, tuning = tuned(tune={"optim.learning_rate": RATES}, train__images=[1280, 2560])
    survey = tuning.survey()
    assert len(survey.arms) == 4
    names = [arm.name for arm in survey.arms.values()]
    assert len(set(names)) == 4  # two arms of one name get digits of an id


def test_the_lowest_mean_over_seeds_wins_and_enters_the_config_and_its_id(tuned, train):
    rates = [2e-3, 4e-3, 8e-3]
    asked, tuning = tuned({**TUNE, "optim.learning_rate": rates})
    survey = train(tuning, distance_from(4e-3))
    assert survey.is_settled
    study = tuning.study(survey)
    assert {rate_of(run) for run in study.runs} == {4e-3}
    assert not {run.config_id for run in study.runs} & {run.config_id for run in asked.runs}
    found = study.runs[0].tuned
    assert (found.setting, found.value, found.values) == ("optim.learning_rate", 4e-3, rates)
    assert found.losses == pytest.approx([1.505, 0.505, 1.505])
    assert (found.num_seeds, found.on, found.edge) == (2, {"train.images": 640}, False)
    assert found.seeds == [FIRST_SEED, FIRST_SEED + 1]
    assert len(found.proxies) == 6
    assert {run.name for run in tuning.folder.read_plan().runs} >= set(found.proxies)
    assert str(found) == "best of 3 values from 0.002 to 0.008, 2 seeds not in the sweep, on train.images=640"


def test_no_value_is_chosen_on_a_seed_that_the_sweep_reports(tuned):
    """The lowest loss of several values is low by chance too, and the arm with most values would gain most by it."""
    taken = [0, FIRST_SEED + 1]
    tune = {"optim.learning_rate": RATES, "seeds": 2}  # without `on` the proxies would be the runs themselves
    _, tuning = tuned(tune, seed=taken)
    assert {run.config["seed"] for run in tuning.survey().plan.runs} == {FIRST_SEED, FIRST_SEED + 2}


def test_a_sweep_that_gets_more_seeds_keeps_its_proxies(tuned):
    few, more = (tuned(seed=list(range(number)))[1].survey().plan for number in (1, 9))
    assert few.runs == more.runs


def test_each_arm_gets_its_own_value(tuned, train):
    _, tuning = tuned()
    best = {"dense": 1e-3 * 2, "switch": 4e-3}
    study = tuning.study(
        train_to_the_end(train, tuning, lambda run: distance_from(best[run.config["routing"]["name"]])(run))
    )
    assert {(run.config["routing"]["name"], rate_of(run)) for run in study.runs} == set(best.items())


@pytest.mark.parametrize(
    ("best", "values", "edge"),
    [
        (8e-3, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], False),
        (5e-4, [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3], False),
        (1.0, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2], True),  # three more values, and then it is marked
    ],
)
def test_a_winner_at_the_edge_extends_the_grid_in_its_own_ratio(tuned, train, best, values, edge):
    _, tuning = tuned(routing__name="dense")
    (arm,) = train_to_the_end(train, tuning, distance_from(best)).arms.values()
    assert arm.tuned.values == values
    assert arm.tuned.edge is edge
    assert len(arm.proxies) == 2 * len(values)
    assert ("at the edge of its grid" in str(arm)) is edge


def test_extension_is_said(tuned, train):
    _, tuning = tuned(routing__name="dense")
    before = tuning.survey()
    now = train(tuning, distance_from(8e-3))
    assert tuning.said_extensions(before, now) == [
        "nano-dense: the best value lies at the edge of 0.001, 0.002, 0.004; 0.008 is tried, too."
    ]
    assert tuning.said(before) == "Tuning optim.learning_rate of 1 arm on train.images=640: 6 runs."


def test_a_grid_ends_at_the_limit_of_its_setting(tuned, train):
    _, tuning = tuned({"optim.momentum": [0.25, 0.5]}, routing__name="dense", optim__name="rmsprop")
    (arm,) = train_to_the_end(train, tuning, lambda run: 1.0 - run.config["optim"]["momentum"]).arms.values()
    assert arm.tuned.values == [0.25, 0.5]  # a momentum of 1 is out of range
    assert arm.tuned.edge


def test_a_value_at_which_a_run_diverged_counts_as_worst(tuned, train):
    _, tuning = tuned(routing__name="dense")

    def loss_of(run):
        return None if rate_of(run) > 3e-3 and run.config["seed"] > FIRST_SEED else 1 / rate_of(run)

    (arm,) = train(tuning, loss_of).arms.values()
    assert (arm.tuned.value, arm.tuned.losses[-1], arm.tuned.edge) == (2e-3, None, False)
    (worst,) = arm.worst
    assert worst.endswith("diverged at 64 images: blocks.1.")
    assert "worst at 0.004" in str(arm)


def test_an_arm_of_which_every_value_failed_is_refused_in_one_line(tuned, train):
    _, tuning = tuned(routing__name="dense")
    survey = train(tuning, lambda run: None)
    assert survey.is_settled
    with pytest.raises(
        SpecError, match=r"^No value of optim.learning_rate can be chosen for nano-dense: at each a tun"
    ):
        tuning.study(survey)


def test_an_arm_of_which_one_seed_failed_at_every_value_is_refused_too(tuned, train):
    _, tuning = tuned(routing__name="dense")
    survey = train(tuning, lambda run: 0.5 if run.config["seed"] == FIRST_SEED else None)
    (arm,) = survey.arms.values()
    assert len(arm.worst) == len(arm.proxies) / 2
    assert survey.is_settled
    with pytest.raises(
        SpecError, match=r"^No value of optim.learning_rate can be chosen for nano-dense: at each a tun"
    ):
        tuning.study(survey)


def test_an_unfinished_proxy_leaves_its_arm_untuned_and_no_other(tuned, train, folder):
    asked, tuning = tuned()
    survey = train(tuning, distance_from(2e-3))
    unfinished = next(run for run in survey.plan.runs if run.config["routing"]["name"] == "switch")
    tuning.folder.run_dir(unfinished).status_json.unlink()
    survey = tuning.survey()
    assert not survey.is_settled
    shown, setting = preview(folder, asked)
    assert setting == "optim.learning_rate"
    study = [run for run in shown.runs if run.tunes is None]
    assert {bool(run.config_id) for run in study if run.config["routing"]["name"] == "dense"} == {True}
    assert {run.config_id for run in study if run.config["routing"]["name"] == "switch"} == {""}


def test_a_survey_of_the_same_folder_finds_the_same_and_keeps_names(tuned, train):
    _, tuning = tuned(routing__name="dense")
    first = train_to_the_end(train, tuning, distance_from(8e-3))
    plan = tuning.folder.read_plan()
    _, again = tuned(routing__name="dense")
    second = again.survey()
    assert (second.plan, second.arms) == (first.plan, first.arms)
    assert freeze_plan(again.folder, second.plan) == plan


def test_a_frozen_study_is_not_tuned_again_and_its_records_survive_the_disk(tuned, train, folder):
    _, tuning = tuned()
    study = freeze_plan(folder, tuning.study(train(tuning, distance_from(2e-3))))
    assert tuning_of(folder, folder.read_plan()) is None
    assert folder.read_plan() == study
    assert tuning_of(tuning.folder, tuning.folder.read_plan()) is None  # the proxies themselves are a sweep


def test_a_sweep_whose_arms_are_being_tuned_is_known_from_its_folder(tuned, train, folder):
    asked, tuning = tuned()
    assert untuned_plan(folder) is None
    freeze_plan(tuning.folder, tuning.survey().plan)
    assert untuned_plan(folder) == asked
    snapshot = read_sweep(folder.path)
    assert snapshot.is_tuning
    assert {run.name.partition("/")[0] for run in snapshot.runs} == {"tuning"}
    assert {run.state for run in snapshot.runs} == {"planned"}


def test_images_of_the_proxies_replace_a_budget_of_flops(grid, folder):
    spec = grid(ecdit__train_flops=[1e11, 2e11], routing__name="dense", eval__every_images=320, ecdit__tune=TUNE)
    survey = tuning_of(folder, make_plan(spec)).survey()
    assert {run.images for run in survey.plan.runs} == {640}
    assert len(survey.arms) == 1


@pytest.mark.parametrize("given", [{"optim__learning_rate": [1e-3, 2e-3]}, {"arm": "optim.learning_rate=1e-3"}])
def test_a_tuned_setting_that_is_given_too_is_refused(tuned, given):
    with pytest.raises(
        SpecError, match=r"^optim.learning_rate is tuned by ecdit.tune, and given, too. Leave out one of"
    ):
        tuned(**given)


def test_a_proxy_that_cannot_be_names_its_combination(tuned):
    with pytest.raises(ConfigError, match=r"In the combination .*routing.name=dense"):
        tuned({**TUNE, "on": {"model.width": 3}})


def test_a_value_that_fits_the_proxies_but_not_the_runs_is_refused_before_anything_is_trained(tuned):
    tune = {"optim.cooldown_share": [0.2, 0.4], "on": {"optim.schedule": "wsd"}}
    with pytest.raises(ConfigError, match=r"optim\.cooldown_share=0\.2 does not fit optim\.schedule=cosine"):
        tuned(tune, routing__name="dense", optim__warmup_images=64)


def test_a_default_that_would_not_fit_the_runs_is_no_hindrance(tuned):
    tune = {"optim.warmup_images": [160, 320], "on": {"train.images": 800}}
    plan, tuning = tuned(tune, optim__schedule="wsd", train__images=1280)  # the default warm-up is of 3,200 images
    assert {run.config["optim"]["warmup_images"] for run in plan.runs} == {160}
    assert all(run.tuned is None for run in tuning.study(tuning.survey()).runs)


def test_a_grid_is_not_extended_to_a_value_that_does_not_fit_the_runs(tuned, train):
    tune = {"optim.warmup_images": [1600, 3200], "on": {"train.images": 12800, "eval.every_images": 3200}}
    fitting = {"optim__schedule": "wsd", "routing__name": "dense", "train__images": 4000}
    survey = train_to_the_end(train, tuned(tune, **fitting)[1], lambda run: 1 / run.config["optim"]["warmup_images"])
    (arm,) = survey.arms.values()
    assert (tuple(arm.tuned.values), arm.tuned.value, arm.tuned.edge) == ((1600, 3200), 3200, True)


def test_a_plan_without_the_records_of_tuning_is_read(tuned, train, folder):
    plan = freeze_plan(folder, make_plan(tuned()[1].spec, ["ecdit.tune=None"]))
    assert "tunes" in plan.model_dump()["runs"][0]
    text = folder.plan_json.read_text()
    old = "\n".join(line for line in text.splitlines() if not any(f'"{key}"' in line for key in NEW_KEYS))
    assert old != text
    folder.plan_json.write_text(old)
    assert folder.read_plan() == plan


NEW_KEYS = ("tuned", "tunes", "retry_of")
