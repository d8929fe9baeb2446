"""The measurements of `ecdit bench sweep`, in small."""

from __future__ import annotations

import pytest

from experiments.benchmarks.executor_cost import (
    measure_executor,
    measure_plan,
    measure_processes,
    measure_status,
    tiny_plan,
)
from sweeps.progress import read_sweep


def test_a_large_plan_and_its_folders_are_timed(tmp_path):
    plan, planning_seconds = measure_plan(8)
    assert len(plan.runs) == 8
    assert measure_status(tmp_path, plan, num_rows=3) > 0 < planning_seconds
    assert {(run.state, run.val_loss, run.loss) for run in read_sweep(tmp_path).runs} == {("done", 0.5, 0.5)}


@pytest.mark.slow
def test_both_ways_of_running_bring_the_same_runs_to_their_end(tmp_path):
    swept = measure_executor(tmp_path / "swept", num_runs=2)
    assert measure_processes(tmp_path / "alone", num_runs=2) > 0
    assert swept["seconds"] > swept["cpu_seconds"]
    assert not swept["torch"]
    both = [read_sweep(tmp_path / "swept").runs, read_sweep(tmp_path / "alone" / "runs").runs]
    values = [sorted((run.name, run.state, run.loss, run.val_loss) for run in runs) for runs in both]
    assert values[0] == values[1]
    assert [state for _, state, _, _ in values[0]] == ["done"] * len(tiny_plan(2).runs)
