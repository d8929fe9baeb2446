"""What a plan is said to take, and how far off that was."""

from __future__ import annotations

import math
import time

import pytest

from experiments.config.designs import DesignedConfig
from experiments.config.memory import memory
from experiments.config.schema import RunConfig
from experiments.records.record_types import Status, StepRow
from experiments.records.writer import write_status
from sweeps.calibration import SpeedPoint, interpolate
from sweeps.cost import errors_of, estimated, table_device, this_machine, total
from sweeps.device_slots import choose_slots
from sweeps.devices import UTILISATION
from sweeps.execution import place_of
from sweeps.plan import Plan
from sweeps.planner import Costs, make_plan, planned_run
from sweeps.runner import freeze_plan


@pytest.fixture
def plan(grid):
    return make_plan(grid(model__name=["nano", "micro"], train__images=640))


def test_seconds_follow_from_the_flops_and_the_calibration(plan):
    flops = [run.train_flops_per_image for run in plan.runs]
    points = (SpeedPoint(flops[0], 2e10), SpeedPoint(flops[1], 4e10))
    priced = estimated(plan, this_machine(points=points))
    assert [run.estimate.seconds for run in priced.runs] == pytest.approx(
        [plan.runs[0].train_flops / 2e10, plan.runs[1].train_flops / 4e10]
    )
    assert priced.runs[0].estimate.basis == "2 calibration(s) on this machine"


def test_between_two_calibrations_the_logarithms_are_interpolated():
    points = (SpeedPoint(10_000, 4e10), SpeedPoint(100, 1e10))
    assert interpolate(points, 1000) == pytest.approx(2e10)
    assert [interpolate(points, flops) for flops in (1, 100, 10_000, 10**9)] == pytest.approx([1e10, 1e10, 4e10, 4e10])
    assert interpolate(points[:1], 7) == 4e10


def test_a_device_is_priced_at_its_assumed_utilisation(plan):
    run = estimated(plan, table_device("H100")).runs[0]
    assert run.estimate.seconds == pytest.approx(run.train_flops / (UTILISATION * 989.4e12))
    assert run.estimate.basis == "H100 at 35% of 989.4 TFLOP/s (assumed)"
    half = estimated(plan, table_device("H100", utilisation=UTILISATION / 2)).runs[0]
    assert half.estimate.seconds == pytest.approx(2 * run.estimate.seconds)


def test_processes_share_the_time(grid):
    alone, four = (make_plan(grid(parallel__world=world)) for world in (1, 4))
    device = table_device("H100")
    assert estimated(four, device).runs[0].estimate.seconds == pytest.approx(
        estimated(alone, device).runs[0].estimate.seconds / 4
    )
    assert total(estimated(four, device)).device_seconds == total(estimated(alone, device)).device_seconds


def test_a_bf16_peak_says_nothing_of_a_run_in_fp32(grid):
    estimate = estimated(make_plan(grid(train__precision="fp32")), table_device("H100")).runs[0].estimate
    assert estimate.seconds is None
    assert "fp32" in estimate.basis


def test_without_a_calibration_time_is_unknown_and_memory_is_not(plan):
    priced = estimated(plan, this_machine())
    assert [run.estimate.seconds for run in priced.runs] == [None, None]
    assert total(priced).seconds is total(priced).device_seconds is None
    assert total(priced).memory_gib == max(run.estimate.memory_gib for run in priced.runs) > 0.3


def test_memory_is_that_of_the_arithmetic_on_the_kind_of_device(plan):
    config = RunConfig.model_validate(plan.runs[0].config)
    on_host = estimated(plan, this_machine()).runs[0].estimate
    on_device = estimated(plan, table_device("H100")).runs[0].estimate
    assert on_host.memory_gib == memory(config, on_accelerator=False).peak_gib
    assert on_device.memory_gib == memory(config, on_accelerator=True).peak_gib
    assert on_host.host_memory_gib is None
    assert on_device.host_memory_gib > 0


def test_the_memory_of_a_run_is_that_of_its_implementation(grid):
    """One plan has both in a random search over them, whose runs differ in the seed, too."""
    fast, reference = (
        make_plan(grid(train__implementation=implementation, seed=seed))
        for seed, implementation in enumerate(("fast", "reference"))
    )
    plan = fast.model_copy(update={"runs": fast.runs + reference.runs})
    found = [run.estimate.memory_gib for run in estimated(plan, this_machine()).runs]
    assert found == [memory(RunConfig.model_validate(run.config), on_accelerator=False).peak_gib for run in plan.runs]


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_no_setting_that_changes_memory_is_missing_from_the_key_of_its_cache(neighbours, on_accelerator):
    costs = Costs()
    runs = [
        planned_run(DesignedConfig(config), costs).model_copy(update={"name": f"{name}-{i}", "config_id": str(i)})
        for i, (name, config) in enumerate(neighbours)
    ]
    plan = Plan(sweep="small", spec={}, overrides=[], num_merged=0, runs=runs)
    estimates = [run.estimate.memory_gib for run in estimated(plan, at(on_accelerator)).runs]
    expected = [memory(config, on_accelerator).peak_gib for _, config in neighbours]
    assert len(set(expected)) > 20
    assert {"train.repa_weight", "train.ema", "flow.learned_sigma"} <= dict(neighbours).keys()
    wrong = [run.name for run, found, one in zip(runs, estimates, expected, strict=True) if found != one]
    assert wrong == []


def at(on_accelerator):
    return table_device("H100") if on_accelerator else this_machine()


@pytest.mark.parametrize(
    ("num_runs", "processes", "runs_per_accelerator", "share"), [(4, 1, 1, 1), (2, 4, 2, 2), (2, 4, 1, 1), (5, 1, 2, 2)]
)
def test_slots_share_the_accelerators_that_several_of_them_name(
    monkeypatch, tmp_path, num_runs, processes, runs_per_accelerator, share
):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 81920\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    slots = choose_slots(num_runs, runs_per_accelerator=runs_per_accelerator, processes_per_run=processes)
    place = place_of(slots, None, None)
    assert (place.memory_gib, place.max_world) == (80.0 / share, 4)


def test_slots_share_the_memory_of_a_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine(num_slots=4).memory_gib == pytest.approx(this_machine().memory_gib / 4)


def test_totals_are_over_the_runs_that_are_asked_for(plan):
    priced = estimated(plan, this_machine(points=[SpeedPoint(1, 1e10)]))
    whole = total(priced, num_slots=1)
    assert (whole.num_runs, whole.images) == (2, 1280)
    assert whole.train_flops == sum(run.train_flops for run in plan.runs)
    assert whole.seconds == pytest.approx(whole.train_flops / 1e10) == whole.device_seconds
    assert total(priced, num_slots=2).seconds == max(run.estimate.seconds for run in priced.runs)
    retired = [priced.runs[0].model_copy(update={"in_spec": False}), priced.runs[1]]
    assert total(priced.model_copy(update={"runs": retired})).num_runs == 1


def finish(run_dir, run, seconds, peak, state="done"):
    row = StepRow(images_seen=run.images, flops=1.0, seconds=seconds, loss=0.1, learning_rate=0.1, grad_norm=1.0,
                  images_per_second=1.0)  # fmt: skip
    write_status(run_dir, Status(state=state, images_total=run.images, heartbeat=time.time(), peak_memory_gib=peak))
    run_dir.steps.write_text(row.model_dump_json(exclude_none=True) + "\n")


def test_a_finished_run_says_how_far_off_its_estimate_was(folder, plan):
    priced = freeze_plan(folder, estimated(plan, this_machine(points=[SpeedPoint(1, 1e10)])))
    first, second = priced.runs
    finish(folder.run_dir(first), first, 1.5 * first.estimate.seconds, 0.5 * first.estimate.memory_gib)
    finish(folder.run_dir(second), second, 1.0, 1.0, state="running")
    (error,) = errors_of(folder, folder.read_plan())
    assert error.name == first.name
    assert error.seconds_error == pytest.approx(0.5)
    assert error.memory_error == pytest.approx(-0.5)


def test_what_was_not_estimated_or_not_measured_has_no_error(folder, plan):
    frozen = freeze_plan(folder, estimated(plan, this_machine()))
    finish(folder.run_dir(frozen.runs[0]), frozen.runs[0], 1.0, None)
    (error,) = errors_of(folder, folder.read_plan())
    assert error.seconds_error is None
    assert error.memory_error is None
    assert not math.isnan(error.memory_gib_estimated)


def test_a_plan_without_estimates_has_no_errors(folder, plan):
    assert errors_of(folder, folder.read_plan()) == []
    frozen = freeze_plan(folder, plan)
    finish(folder.run_dir(frozen.runs[0]), frozen.runs[0], 1.0, 1.0)
    assert errors_of(folder, folder.read_plan()) == []
