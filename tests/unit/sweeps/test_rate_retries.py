"""A run that diverged stays in the plan as failed, and `ecdit.on_divergence` trains it again at a lower rate."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from experiments.errors import SpecError
from experiments.records.record_types import TunedSetting
from sweeps.execution import Screen, SweepOptions, run_here
from sweeps.planner import make_plan
from sweeps.progress import read_progress, read_sweep
from sweeps.rate_retries import retry_design, settled_by_retry, with_retries
from sweeps.runner import freeze_plan

RETRY = {"learning_rate_factor": 0.5, "times": 2}
SMALL = {"routing__name": "dense", "train__images": 640, "eval__every_images": 320}


def rates(plan):
    return [run.config["optim"]["learning_rate"] for run in plan.runs]


@pytest.fixture
def end(folder, write_run):
    """Brings a run of the frozen plan to its end, with the state and reason that are given."""

    def ended(run, state="done", reason=None):
        write_run(folder.run_dir(run).path, run.config, lambda images: 0.5, state=state, reason=reason)

    return ended


@pytest.fixture
def diverge(end):
    return lambda run: end(run, "failed", "Not finite after 1,280 images: blocks.1 (loss nan).")


@pytest.fixture
def planned(grid, folder):
    """The frozen plan of one run at a learning rate of 0.008."""

    def make(on_divergence=RETRY, **parameters):
        given = {**SMALL, "optim__learning_rate": 8e-3, **parameters}
        return freeze_plan(folder, make_plan(grid(**given, ecdit__on_divergence=on_divergence)))

    return make


def test_a_run_that_diverged_is_planned_again_at_a_lower_rate_at_most_so_often(planned, diverge, folder):
    plan = planned()
    assert with_retries(folder, plan) == plan  # nothing has diverged
    for expected in ([8e-3, 4e-3], [8e-3, 4e-3, 2e-3], [8e-3, 4e-3, 2e-3]):
        diverge(plan.runs[-1]) if not folder.run_dir(plan.runs[-1]).exists() else None
        plan = freeze_plan(folder, with_retries(folder, plan))
        assert rates(plan) == expected
    first, *retries = plan.runs
    assert first.retry_of is None
    assert {run.retry_of for run in retries} == {first.name}
    assert len({run.config_id for run in plan.runs}) == 3
    assert all(run.in_spec for run in plan.runs)


@pytest.mark.parametrize(
    ("setting", "value", "stays"), [("optim.learning_rate", 8e-3, False), ("optim.beta1", 0.9, True)]
)
def test_a_retry_does_not_have_the_rate_that_was_tuned(planned, diverge, folder, setting, value, stays):
    """Tables take runs of one tuned arm for one setup, and would average the retry with the others."""
    tuned = TunedSetting(
        setting=setting, value=value, values=[value], losses=[0.5], num_seeds=1, on={}, proxies=["small-0"]
    )
    plan = planned()
    plan = freeze_plan(folder, plan.model_copy(update={"runs": [plan.runs[0].model_copy(update={"tuned": tuned})]}))
    diverge(plan.runs[0])
    first, retry = with_retries(folder, plan).runs
    assert first.tuned == tuned
    assert retry.origin.tuned == (tuned if stays else None)
    assert retry.origin.retry_of == first.name


def test_the_sweep_file_asks_for_the_same_retries_again(grid, planned, diverge, folder):
    plan = planned()
    diverge(plan.runs[0])
    plan = freeze_plan(folder, with_retries(folder, plan))
    asked = make_plan(grid(**SMALL, optim__learning_rate=8e-3, ecdit__on_divergence=RETRY))
    assert freeze_plan(folder, with_retries(folder, asked)) == plan


def test_a_run_whose_trunk_diverged_is_planned_again_too(grid, folder, diverge, end):
    lengths = {**SMALL, "train__images": [640, 1280], "optim__schedule": "wsd", "optim__warmup_images": 64}
    plan = freeze_plan(folder, make_plan(grid(**lengths, optim__learning_rate=8e-3, ecdit__on_divergence=RETRY)))
    short, long = plan.runs
    assert long.parent == short.name
    diverge(short)
    plan = freeze_plan(folder, with_retries(folder, plan))
    retries = [run for run in plan.runs if run.retry_of is not None]
    assert {run.retry_of for run in retries} == {short.name, long.name}
    assert [run.images for run in retries] == [640, 1280]
    for run in retries:
        end(run)
    assert settled_by_retry(plan, read_sweep(folder.path).runs) == {short.name, long.name}


@pytest.mark.parametrize("reason", ["killed by SIGKILL", "its router raised ValueError"])
def test_other_failures_are_not_divergence(planned, end, folder, reason):
    plan = planned()
    end(plan.runs[0], "failed", reason)
    assert with_retries(folder, plan) == plan


def test_without_the_design_nothing_is_planned_again_and_the_failure_is_shown(planned, diverge, folder):
    plan = planned(on_divergence=None)
    diverge(plan.runs[0])
    assert with_retries(folder, plan) == plan
    (shown,) = read_sweep(folder.path).runs
    assert (shown.state, shown.diverged_at) == ("failed", 1280)
    assert shown.reason == "diverged at 1,280 images: blocks.1 (loss nan)."


def test_a_rate_that_the_sweep_has_anyway_is_not_trained_twice(planned, diverge, folder):
    plan = planned(optim__learning_rate=[4e-3, 8e-3])
    diverge(next(run for run in plan.runs if run.config["optim"]["learning_rate"] == 8e-3))
    assert with_retries(folder, plan) == plan


def test_proxies_are_not_retried(planned, diverge, folder):
    plan = planned()
    proxy = plan.runs[0].model_copy(update={"tunes": "small"})
    diverge(proxy)
    plan = plan.model_copy(update={"runs": [proxy]})
    assert with_retries(folder, plan) == plan


def test_a_divergence_counts_as_settled_when_a_retry_is_done(planned, diverge, end, folder):
    plan = planned()
    diverge(plan.runs[0])
    plan = freeze_plan(folder, with_retries(folder, plan))

    def settled():
        return settled_by_retry(plan, [read_progress(folder.run_dir(run)) for run in plan.runs])

    assert settled() == set()
    end(plan.runs[1])
    assert settled() == {plan.runs[0].name}


def test_a_sweep_trains_it_again_and_loses_nothing(grid, folder, worker):
    said = []
    screen = Screen(said.append, lambda: nullcontext(lambda snapshot: None))
    plan = make_plan(grid(**SMALL, optim__learning_rate=[1e-3, 8e-3], ecdit__on_divergence=RETRY))
    result = run_here(folder, plan, SweepOptions(slots=2), screen, [*worker, "finite=0.005"])
    assert [(run.state, run.diverged_at) for run in result.runs] == [("done", None), ("failed", 320), ("done", None)]
    assert result.exit_code == 0
    first, retry = result.runs[1:]
    assert f"{first.name} diverged: it is trained again as {retry.name}, optim.learning_rate=0.004." in said
    assert folder.run_dir(folder.read_plan().runs[-1]).read_run().retry_of == first.name
    again = run_here(folder, folder.read_plan(), SweepOptions(slots=2), screen, [*worker, "0=crash"])
    assert [run.state for run in again.runs] == ["done", "failed", "done"]


def test_a_sweep_does_not_take_back_what_another_one_has_added_to_the_plan_meanwhile(seeds, folder, end, worker):
    said, extended = [], []

    def extend_once(snapshot):
        if not extended:
            with folder.lock():
                extended.append(freeze_plan(folder, seeds(0, 1, 2)))
            end(next(run for run in extended[0].runs if run.config["seed"] == 2))

    result = run_here(
        folder, seeds(0, 1), SweepOptions(slots=2), Screen(said.append, lambda: nullcontext(extend_once)), worker
    )
    assert [run.state for run in result.runs] == ["done", "done"]
    assert folder.read_plan() == extended[0]
    assert [line for line in said if "diverged" in line] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"times": 1}, "ecdit.on_divergence has no learning_rate_factor. Give a number between 0 and 1:"),
        ({"learning_rate_factor": 1}, "ecdit.on_divergence has learning_rate_factor=1. Give a number between 0 and 1"),
        ({"learning_rate_factor": "half"}, "ecdit.on_divergence has learning_rate_factor=half."),
        ({**RETRY, "times": 0}, "times=0 is not a number of retries. Give a whole number from 1 to 10."),
        ({**RETRY, "times": 1.5}, "times=1.5 is not a number of retries."),
        ({**RETRY, "time": 1}, "'time' is not a key. Did you mean 'times'?"),
        (0.5, "ecdit.on_divergence=0.5 is not a mapping. Write `ecdit.on_divergence: {value: {learning_rate_factor"),
        ([RETRY, RETRY], "ecdit.on_divergence is not a single constant."),
    ],
)
def test_mistakes_are_one_line(grid, given, message):
    with pytest.raises(SpecError) as raised:
        retry_design(grid(ecdit__on_divergence=given))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_line_turns_it_off(grid):
    assert retry_design(grid(ecdit__on_divergence=RETRY), ["ecdit.on_divergence=None"]) is None
