"""Runs of several lengths share a trunk: who continues from whom, when it is started, and what happens to orphans."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest

from experiments.config.cooldown import cooldown_start
from experiments.config.schema import RunConfig
from experiments.errors import RunFailedError, SpecError
from experiments.records.record_types import Status
from experiments.records.writer import write_status
from sweeps.cluster import parse_cluster
from sweeps.cost import Place, estimated, total
from sweeps.plan import Plan, PlannedRun, extend
from sweeps.planner import make_plan
from sweeps.progress import read_sweep
from sweeps.slurm import batch_script, job_arrays
from sweeps.slurm_job import RunJob
from sweeps.spec import load_spec, parse_spec
from sweeps.trunks import branch_options


@pytest.fixture
def lengths(grid):
    """A plan of families, one for each seed, of these lengths in images."""

    def plan(*images: int, seeds=(0,), **parameters: object) -> Plan:
        fixed = {
            "routing__name": "dense",
            "train__batch_images": 32,
            "optim__warmup_images": 32,
            "optim__schedule": "wsd",
            **parameters,
        }
        return make_plan(grid(train__images=list(images), seed=list(seeds), **fixed))

    return plan


def by_images(plan: Plan, seed: int = 0) -> dict[int, PlannedRun]:
    return {run.images: run for run in plan.runs if run.config["seed"] == seed}


def parents(plan: Plan, seed: int = 0) -> dict[int, int | None]:
    """The length of each run, and that of its parent."""
    names = {run.name: run.images for run in plan.runs}
    return {run.images: names.get(run.parent or "") for run in plan.runs if run.config["seed"] == seed}


def states(result) -> list[str]:
    return [run.state for run in result.runs]


def command_of(folder, run) -> list[str]:
    return folder.run_dir(run).read_run().command


# The plan.


def test_each_run_continues_from_the_next_shorter_one_of_its_family(lengths):
    plan = lengths(1600, 320, 640, seeds=(0, 1))
    for seed in (0, 1):
        assert parents(plan, seed) == {320: None, 640: 320, 1600: 640}
        family = by_images(plan, seed)
        assert {run.config["seed"] for run in family.values()} == {seed}
        assert [family[n].trunk_images for n in (320, 640, 1600)] == [0, 256, 512]
        assert family[640].trunk_images == cooldown_start(RunConfig.model_validate(family[320].config))
        assert family[1600].parent == family[640].name


def test_runs_of_other_schedules_or_other_settings_train_alone(lengths):
    assert set(parents(lengths(320, 640, optim__schedule="cosine")).values()) == {None}
    plan = lengths(320, 640, optim__cooldown_share=1.0, optim__warmup_images=0)  # which decay from their first image
    assert set(parents(plan).values()) == {None}
    arms = ["train.images=320 log.every_images=32", "train.images=640 log.every_images=64"]
    plan = make_plan(lengths_of_arms(arms))
    assert [run.parent for run in plan.runs] == [None, None]


def lengths_of_arms(arms):
    """A sweep file whose arms say how long they train."""
    fixed = {"optim.schedule": "wsd", "optim.warmup_images": 32, "routing.name": "dense"}
    parameters = {"arm": {"values": arms}, **{key: {"value": value} for key, value in fixed.items()}}
    return parse_spec({"program": "ecdit", "method": "grid", "parameters": parameters}, default_name="arms")


def test_lengths_that_come_to_the_same_batches_have_the_same_parent(lengths):
    plan = lengths(320, 625, 630, 960)
    shortest, *same, longest = plan.runs
    assert [run.images for run in same] == [640, 640]
    assert [run.parent for run in same] == [shortest.name] * 2
    assert longest.parent in {run.name for run in same}


def test_what_is_spent_is_the_longest_trunk_and_every_cooldown(lengths):
    plan = lengths(320, 640, 1600)
    cost = plan.runs[0].train_flops_per_image
    assert [run.train_flops for run in plan.runs] == [320 * cost, 640 * cost, 1600 * cost]
    assert [run.train_flops_spent for run in plan.runs] == [320 * cost, 384 * cost, 1088 * cost]
    whole = total(plan)
    assert (whole.train_flops, whole.train_flops_spent) == (2560 * cost, 1792 * cost)


def test_estimates_of_time_are_of_what_is_spent(lengths):
    priced = estimated(lengths(320, 640, train__precision="bf16"), Place("H", 80.0, True, 8, (), 1e12, 0.5))
    first, second = priced.runs
    assert second.estimate.seconds == pytest.approx(2 * first.estimate.seconds)  # as measured by a run's own clock
    assert second.seconds_spent == pytest.approx(first.estimate.seconds * 384 / 320)
    assert total(priced).device_seconds == pytest.approx(first.seconds_spent + second.seconds_spent)


@pytest.mark.parametrize(("name", "share", "num_runs"), [("isoflop", 0.6, 40), ("scaling", 0.7, 108)])
def test_the_shipped_sweeps_spend_less_than_their_runs_alone(name, share, num_runs):
    whole = total(make_plan(load_spec(name)))
    assert whole.num_runs == num_runs
    assert whole.train_flops_spent / whole.train_flops <= share


def test_a_plan_of_an_earlier_version_is_read_and_its_runs_train_alone(lengths, folder):
    plan = lengths(320, 640)
    old = plan.model_dump(mode="json")
    for run in old["runs"]:
        del run["parent"], run["trunk_images"]
    folder.path.mkdir(parents=True)
    folder.plan_json.write_text(json.dumps(old))
    read = folder.read_plan()
    assert [(run.parent, run.trunk_images) for run in read.runs] == [(None, 0)] * 2
    assert extend(read, plan, started=()) == plan
    begun = extend(read, plan, started={run.name for run in plan.runs})
    assert parents(begun) == {320: None, 640: None}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({1: {"parent": "nobody"}}, "continues from nobody"),
        ({1: {"parent": "../../elsewhere"}}, "it should be the name of a folder"),
        ({1: {"trunk_images": 640}}, "which is no shorter run"),
        ({1: {"parent": None}}, "which is no shorter run"),
        ({0: {"parent": "SECOND", "trunk_images": 256}}, "which is no shorter run"),
    ],
)
def test_a_plan_whose_runs_would_wait_for_ever_is_refused(lengths, folder, changes, fault):
    plan = lengths(320, 640)
    raw = plan.model_dump(mode="json")
    for number, change in changes.items():
        texts = {key: plan.runs[1].name if value == "SECOND" else value for key, value in change.items()}
        raw["runs"][number] |= texts
    folder.path.mkdir(parents=True)
    folder.plan_json.write_text(json.dumps(raw))
    with pytest.raises(SpecError, match=fault):
        folder.read_plan()


# The plan when the sweep file changes.


def test_a_longer_length_added_later_continues_from_what_is_there(lengths):
    before, after = lengths(320, 640), lengths(320, 640, 1600)
    plan = extend(before, after, started={run.name for run in before.runs})
    assert parents(plan) == {320: None, 640: 320, 1600: 640}


def test_a_started_run_keeps_what_it_was_started_with(lengths):
    before, after = lengths(320, 1600), lengths(320, 640, 960, 1600)
    long = by_images(before)[1600]
    plan = extend(before, after, started={run.name for run in before.runs})
    assert parents(plan) == {320: None, 640: 320, 960: 640, 1600: 320}
    assert by_images(plan)[1600].train_flops_spent == long.train_flops_spent
    assert parents(extend(before, after, started=())) == {320: None, 640: 320, 960: 640, 1600: 960}


def test_a_run_that_is_no_longer_asked_for_is_nobodys_parent(lengths):
    before, after = lengths(320, 640), lengths(640, 1600)
    first = by_images(before)[320]
    plan = extend(before, after, started={first.name})
    assert {run.images: run.in_spec for run in plan.runs} == {320: False, 640: True, 1600: True}
    assert parents(plan) == {320: None, 640: None, 1600: 640}


def test_a_started_run_whose_parent_has_left_the_plan_counts_as_alone(lengths):
    before, after = lengths(320, 640), lengths(640)
    plan = extend(before, after, started={by_images(before)[640].name})
    assert parents(plan) == {640: None}


# Execution on this machine.


def test_a_run_starts_from_its_parents_checkpoint_while_that_cools_down(run, lengths, folder):
    plan = lengths(320, 640, 1600)
    texts = []

    def on_progress(snapshot):
        """Looks on, and stops the sweep once all but the first run are done."""
        texts.append([(one.state, one.waits_for) for one in snapshot.runs])
        if [one.state for one in snapshot.runs[1:]] == ["done", "done"] and not snapshot.stopping:
            os.kill(os.getpid(), signal.SIGTERM)

    result = run(plan, "0:320=late_wait_for_stop", on_progress=on_progress)
    assert states(result) == ["interrupted", "done", "done"]
    first, second, third = plan.runs
    assert "--branch-from" not in command_of(folder, first)
    assert command_of(folder, second)[-1] == str(folder.run_dir(first).path)
    assert command_of(folder, third)[-1] == str(folder.run_dir(second).path)
    assert ("planned", second.name) in [shown[2] for shown in texts]
    assert states(run(plan)) == ["done"] * 3


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("fail", "the loss is not finite in blocks.1"),
        ("die", "killed by SIGKILL, perhaps for lack of memory"),
    ],
)
def test_where_the_trunk_fails_its_children_are_named_and_not_started(run, lengths, folder, behaviour, reason):
    plan = lengths(320, 640, 1600, seeds=(0, 1))
    result = run(plan, f"0:320={behaviour}")
    mine = [one for one, planned in zip(result.runs, plan.runs, strict=True) if planned.config["seed"] == 0]
    others = [one for one, planned in zip(result.runs, plan.runs, strict=True) if planned.config["seed"] == 1]
    assert [one.state for one in mine] == ["failed", "planned", "planned"]
    assert [one.state for one in others] == ["done"] * 3
    for child in mine[1:]:
        assert child.reason is not None
        assert child.reason.startswith(f"not started: {mine[0].name} failed, and its first 256 images are the trunk of")
        assert child.reason.endswith(reason)
        assert not folder.run_dir_called(child.name).exists()
    assert result.exit_code == 1
    left = run(plan, retry_failed=False)  # nothing is started, nothing is lost, and nobody waits for ever
    assert states(left).count("planned") == 2
    assert states(run(plan, retry_failed=True)) == ["done"] * 6


def test_a_failure_in_the_cooldown_stops_no_child(run, lengths):
    assert states(run(lengths(320, 640), "0:320=late_fail")) == ["failed", "done"]


def test_a_killed_trunk_is_tried_again_before_its_children(run, lengths):
    assert states(run(lengths(320, 640, 1600), "0:320=die_once", retries=1)) == ["done"] * 3


def test_a_parent_that_is_done_without_its_checkpoint_is_named_with_the_way_out(run, lengths, folder):
    before, after = lengths(320), lengths(320, 640, 1600)
    assert states(run(before)) == ["done"]
    parent = folder.run_dir(before.runs[0])
    shutil.rmtree(parent.checkpoint(256))
    result = run(after)
    assert states(result) == ["done", "planned", "planned"]
    for child in result.runs[1:]:
        assert child.reason == (
            f"not started: {parent.path.name} is done, but its checkpoint after 256 images, from which this run "
            f"continues, is gone. Bring it back, or remove {parent.path}; the same command trains it again."
        )
    shutil.rmtree(parent.path)
    assert states(run(after)) == ["done"] * 3


def test_a_run_that_has_begun_does_not_need_its_parent(lengths, folder):
    plan = lengths(320, 640)
    first, second = plan.runs
    assert branch_options(folder, first) == ()
    assert branch_options(folder, second) == ("--branch-from", str(folder.run_dir(first).path))
    folder.run_dir(second).checkpoint(256).mkdir(parents=True)
    folder.run_dir(second).run_json.write_text("{}")
    assert branch_options(folder, second) == ()


def test_another_sweep_may_train_the_parent(lengths, queue, folder, clock):
    plan = lengths(320, 640)
    first, second = plan.runs
    one, other = queue(plan), queue(plan)
    assert one.take() == first
    assert other.take() is None
    other.renew()
    assert other.parents_awaited == {second.name: first.name}
    assert one.take() is None
    clock[0] += 2.0
    folder.run_dir(first).checkpoint(256).mkdir(parents=True)
    assert other.take() == second
    other.renew()
    assert other.parents_awaited == {}


def test_where_another_sweep_fails_the_parent_its_children_leave_this_queue(lengths, queue, folder, clock):
    plan = lengths(320, 640)
    first, second = plan.runs
    one, other = queue(plan), queue(plan)
    assert one.take() == first
    assert other.take() is None
    failed = Status(state="failed", images_total=320, heartbeat=time.time(), reason="the loss is not finite")
    write_status(folder.run_dir(first), failed)
    one.give_back(first, None)
    clock[0] += 2.0
    assert other.take() is None
    assert other.is_empty
    assert other.orphans[second.name].startswith(f"not started: {first.name} failed")


def test_the_status_of_a_sweep_says_what_waits_for_what(lengths, folder):
    plan = lengths(320, 640)
    folder.write_plan(plan)
    assert [run.waits_for for run in read_sweep(folder.path).runs] == [None, plan.runs[0].name]
    folder.run_dir(plan.runs[0]).checkpoint(256).mkdir(parents=True)
    assert [run.waits_for for run in read_sweep(folder.path).runs] == [None, None]


def test_the_status_says_why_the_child_of_a_failed_run_was_not_started(lengths, folder):
    plan = lengths(320, 640)
    first = plan.runs[0]
    folder.write_plan(plan)
    failed = Status(state="failed", images_total=320, heartbeat=time.time(), reason="the loss is not finite")
    write_status(folder.run_dir(first), failed)
    child = read_sweep(folder.path).runs[1]
    assert (child.state, child.waits_for) == ("planned", None)
    assert child.reason.startswith(f"not started: {first.name} failed")


def test_no_sweep_goes_on_with_the_children_of_a_failed_run_by_itself(lengths, folder):
    plan = lengths(320, 640, 1600)
    first = plan.runs[0]
    folder.write_plan(plan)
    assert [run.is_over for run in read_sweep(folder.path).runs] == [False, False, False]
    failed = Status(state="failed", images_total=320, heartbeat=time.time(), reason="the loss is not finite")
    write_status(folder.run_dir(first), failed)
    parent, child, grandchild = read_sweep(folder.path).runs
    assert (parent.is_over, child.is_over, grandchild.is_over) == (True, True, True)
    assert (grandchild.reason, grandchild.waits_for) == (child.reason, None)


# Slurm.

HOUR = {"time": "1:00:00"}


def test_the_job_of_a_child_comes_after_that_of_its_parent(lengths, folder):
    plan = lengths(320, 640, 1600, seeds=(0, 1))
    first, *children = job_arrays(folder, plan.runs, parse_cluster(HOUR))
    assert {run.images for run in first.runs} == {320}
    assert first.parent is None
    assert [(len(array.runs), array.runs[0].parent) for array in children] == [(1, array.parent) for array in children]
    assert [array.runs[0].images for array in children] == [640, 640, 1600, 1600]
    assert "--dependency" not in batch_script(folder, "small", first)
    assert f"#SBATCH --dependency=afterany:JOB_OF_{children[0].parent}\n" in batch_script(folder, "small", children[0])


def test_a_dependency_of_the_cluster_file_holds_too(lengths, folder):
    cluster = parse_cluster({**HOUR, "extra": {"dependency": "singleton"}})
    first, child = job_arrays(folder, lengths(320, 640).runs, cluster)
    assert "#SBATCH --dependency=singleton\n" in batch_script(folder, "small", first)
    assert f"#SBATCH --dependency=afterany:JOB_OF_{child.parent},singleton\n" in batch_script(folder, "small", child)


def test_a_child_whose_trunk_is_there_waits_for_no_job(lengths, folder):
    plan = lengths(320, 640, 1600)
    folder.run_dir(plan.runs[0]).checkpoint(256).mkdir(parents=True)
    arrays = job_arrays(folder, plan.runs, parse_cluster(HOUR))
    assert [([run.images for run in array.runs], array.parent is None) for array in arrays] == [
        ([320, 640], True), ([1600], False),
    ]  # fmt: skip


def test_a_job_whose_trunk_is_missing_says_so_and_starts_nothing(lengths, folder, monkeypatch):
    first, second = lengths(320, 640).runs
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(RunFailedError, match=f"{second.name} was not started: {first.name} has ended without the c"):
        RunJob(folder, second, command=("-c", "raise SystemExit(3)"))()
    assert not folder.run_dir(second).exists()


def test_a_job_hands_its_parent_to_the_run(lengths, folder, monkeypatch, worker):
    first, second = lengths(320, 640).runs
    folder.run_dir(first).checkpoint(256).mkdir(parents=True)
    folder.write_config(second)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    RunJob(folder, second, command=tuple(worker[1:]))()
    assert command_of(folder, second)[-2:] == ["--branch-from", str(folder.run_dir(first).path)]
