"""Executed FLOPs take the place of planned ones in every table, curve and fit, and the plan stays visible."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.arm_table import arm_table
from analysis.curves import training_curves, validation_curves
from analysis.export_tables import export_runs
from analysis.figures.registry import find_figure
from analysis.isoflop_minima import isoflop
from analysis.load_records import Records, load_records
from analysis.report.run_rows import columns_with_scores, run_rows
from analysis.run_table import run_table
from experiments.records.run_folder import find_runs

Write = Callable[..., Path]
FACTOR = 1.5
ARMS = {"dense": ({}, {"name": "dense"}, 1e-5), "ec": ({}, {"name": "expert_choice"}, 1.5e-5)}


def execute(folder: Path, factor: Callable[[float], float] = lambda share: FACTOR) -> None:
    """States that every sparse run spent `factor` times its plan, which may change with the share of training."""
    for run in find_runs(folder):
        if run.read_run().config["routing"]["name"] != "dense":
            rows = [json.loads(line) for line in run.steps.read_text().splitlines()]
            end = rows[-1]["images_seen"]
            rows = [row | {"executed_flops": factor(row["images_seen"] / end) * row["flops"]} for row in rows]
            run.steps.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def pair(write_arms: Write) -> tuple[Records, Records]:
    """The records of one study as planned, and as executed."""
    folder = write_arms(ARMS, seeds=(0, 1))
    planned = load_records([folder])
    execute(folder)
    return planned, load_records([folder])


def of_arm(frame: pd.DataFrame, arm: str) -> pd.DataFrame:
    return frame[frame["arm"] == arm].reset_index(drop=True)


def test_runs_and_steps_have_executed_flops_beside_the_plan(pair: tuple[Records, Records]) -> None:
    planned, executed = (run_table(each) for each in pair)
    ours, plan = of_arm(executed, "Expert choice"), of_arm(planned, "Expert choice")
    assert ours["train_flops_per_image"].to_list() == pytest.approx((FACTOR * plan["train_flops_per_image"]).to_list())
    assert ours["planned_train_flops_per_image"].to_list() == plan["train_flops_per_image"].to_list()
    dense = of_arm(executed, "Dense (same depth)")
    assert (dense["train_flops_per_image"] == dense["planned_train_flops_per_image"]).all()
    assert dense["executed_train_flops_per_image"].isna().all()
    steps = pair[1].steps
    assert set((steps["flops"] / steps["planned_flops"]).round(9)) == {1.0, FACTOR}


def test_curves_are_drawn_against_executed_flops(pair: tuple[Records, Records]) -> None:
    for curves in (training_curves, validation_curves):
        planned, executed = (curves(each, run_table(each)) for each in pair)
        for arm, factor in (("Expert choice", FACTOR), ("Dense (same depth)", 1.0)):
            expected = factor * of_arm(planned, arm)["flops"]
            assert of_arm(executed, arm)["flops"].to_list() == pytest.approx(expected.to_list())


def test_a_cost_that_changes_over_training_is_followed_by_the_curve(write_arms: Write) -> None:
    folder = write_arms(ARMS, seeds=(0,))
    execute(folder, lambda share: 1 + share)
    records = load_records([folder])
    curve = of_arm(validation_curves(records, run_table(records)), "Expert choice")
    per_image = of_arm(run_table(records), "Expert choice")["planned_train_flops_per_image"].iloc[0]
    share = curve["images_seen"] / curve["images_seen"].max()
    assert curve["flops"].to_list() == pytest.approx((curve["images_seen"] * per_image * (1 + share)).to_list())


def test_how_many_times_sooner_dense_is_reached_counts_executed_flops(pair: tuple[Records, Records]) -> None:
    sooner = []
    for records in pair:
        numbers = find_figure("loss-convergence").draw(records, run_table(records)).numbers
        reach = numbers[numbers["split"] == "reach"].set_index("arm")
        sooner.append(reach.loc["Expert choice", "times_sooner_flops"])
    assert sooner[0] / sooner[1] == pytest.approx(FACTOR)


def test_budgets_of_isoflop_are_of_executed_flops(write_budgets: Write) -> None:
    folder = write_budgets(budgets=(1e12,), widths=(48, 64, 96))
    execute(folder)
    profiles = isoflop(run_table(load_records([folder])), "params_active").profiles
    flops = profiles.groupby("routing.name")["flops"].first()
    assert flops["expert_choice"] / flops["dense"] == pytest.approx(FACTOR, rel=0.02)


def test_tables_show_the_plan_only_beside_runs_that_left_it(pair: tuple[Records, Records]) -> None:
    keys = []
    for records in pair:
        rows = run_rows(records, run_table(records))
        keys.append({column.key for column in columns_with_scores(rows)})
        ours = of_arm(rows, "Expert choice")
        assert (ours["train_flops"] / ours["planned_flops"]).iloc[0] == pytest.approx(
            FACTOR if records is pair[1] else 1
        )
    assert "planned_flops" not in keys[0]
    assert "planned_flops" in keys[1]


def test_arms_have_planned_and_executed_flops_of_training(pair: tuple[Records, Records]) -> None:
    planned, executed = (arm_table(each, run_table(each)).set_index("arm") for each in pair)
    assert planned["executed_train_flops_per_image"].isna().all()
    row = executed.loc["Expert choice"]
    assert row["executed_train_flops_per_image"] == pytest.approx(FACTOR * row["planned_train_flops_per_image"])
    assert pd.isna(executed.loc["Dense (same depth)", "executed_train_flops_per_image"])


def test_exports_have_both_as_they_were_written(write_arms: Write) -> None:
    folder = write_arms(ARMS, seeds=(0,))
    execute(folder)
    table = export_runs(folder).set_index("routing.name")
    row = table.loc["expert_choice"]
    assert row["steps.executed_flops"] == pytest.approx(FACTOR * row["steps.flops"])
    assert pd.isna(table.loc["dense", "steps.executed_flops"])


def test_the_overhead_beside_measured_time_is_that_of_executed_flops(write_arms: Write) -> None:
    """Sampling has one timestep in a batch. Seeds may execute other numbers, whose mean counts."""
    folder = write_arms({"dense": ARMS["dense"]}, seeds=(0, 1))
    planned = float(run_table(load_records([folder]))["flops_per_image"].iloc[0])
    for seed, factor in ((0, 1.5), (1, 1.7)):
        final = {"executed_flops_per_image": 3 * planned, "executed_flops_per_image_same_t": factor * planned}
        write_arms({"ec": ARMS["ec"]}, seeds=(seed,), final=final)
    records = load_records([folder])
    numbers = find_figure("inference-time").draw(records, run_table(records)).numbers.set_index("arm")
    assert numbers.loc["Expert choice", "overhead_flops_per_image"] == pytest.approx(0.6)
    assert numbers.loc["Dense (same depth)", "flops_per_image"] == planned
