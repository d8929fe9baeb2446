"""The rows of the comparison: exact where the curves are known, missing where nothing was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.arm_table import arm_table, json_rows
from analysis.compare import compare
from analysis.executed_flops import COUNTED_BEFORE
from analysis.load_records import Records, load_records
from analysis.run_table import run_table
from experiments.config.budget import budget
from experiments.config.schema import RunConfig

KEYS = {
    "routing", "num_experts", "capacity_factor", "params_total", "params_active", "flops_per_image", "num_seeds",
    "val_loss_mean", "val_loss_std", "images_per_second", "inference_seconds_per_image", "dropped_share",
}  # fmt: skip


def rows_by_arm(records: Records) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in json_rows(arm_table(records, run_table(records)))}


def test_every_row_has_every_key_of_the_command_and_is_json(study: Records) -> None:
    rows = list(rows_by_arm(study).values())
    assert all(set(row) >= KEYS for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_mean_and_spread_of_the_final_loss_are_over_seeds(study: Records) -> None:
    row = rows_by_arm(study)["Expert choice"]
    assert row["num_seeds"] == 3
    assert row["val_loss_mean"] == pytest.approx(0.2 - 1.5e-5 * 9600)
    assert row["val_loss_std"] == pytest.approx(0.001)


def test_images_to_the_loss_of_dense_are_where_the_mean_curves_meet(study: Records) -> None:
    rows = rows_by_arm(study)
    assert rows["Dense (same depth)"]["images_to_dense_loss"] == pytest.approx(9600)
    assert rows["Dense (same activated)"]["images_to_dense_loss"] == pytest.approx(8000, rel=5e-3)
    assert rows["Token choice"]["images_to_dense_loss"] == pytest.approx(6000, rel=5e-3)
    assert rows["Expert choice"]["times_sooner"] == pytest.approx(1.5, rel=5e-3)


def test_a_merged_run_has_seen_the_images_of_all_its_parts(tmp_path: Path, write_run: Callable[..., Any]) -> None:
    """Its folder has the number of the first. It would seem to reach dense's loss with a half of what it took."""
    train = {"train": {"images": 9600}, "eval": {"every_images": 1600}}
    write_run(tmp_path / "dense", {**train, "routing": {"name": "dense"}}, lambda n: 0.2 - 1e-5 * n)
    routing = {"name": "segmoe", "num_experts": 2, "top_k": 1}
    parts = [{"name": f"part-{number}", "config_id": str(number) * 10} for number in range(2)]
    merged = write_run(
        tmp_path / "merged", {**train, "routing": routing}, lambda n: 0.1, eval_images=[9600], parts=parts
    )
    merged.steps.unlink()
    records = load_records([tmp_path])
    row = rows_by_arm(records)["SegMoE"]
    assert row["images_to_dense_loss"] == 19200
    assert row["times_sooner"] == pytest.approx(0.5, rel=5e-3)
    assert COUNTED_BEFORE in compare(records).notes


def test_an_arm_that_never_reaches_dense_has_no_number(write_arms: Callable[..., Path]) -> None:
    slow = {"dense": ({}, {"name": "dense"}, 1e-5), "ec": ({}, {"name": "expert_choice"}, 0.9e-5)}
    assert rows_by_arm(load_records([write_arms(slow)]))["Expert choice"]["images_to_dense_loss"] is None


def test_costs_are_those_of_the_budget(study: Records) -> None:
    cost = budget(RunConfig.model_validate({"model": {"name": "nano"}, "routing": {"name": "expert_choice"}}))
    row = rows_by_arm(study)["Expert choice"]
    assert row["params_total"] == cost.params_total
    assert row["params_active"] == cost.params_active
    assert row["flops_per_image"] == cost.flops_per_image


def test_what_was_not_measured_is_missing_and_not_0(write_arms: Callable[..., Path]) -> None:
    row = rows_by_arm(load_records([write_arms(seeds=(0,), inference_seconds=None)]))["Dense (same depth)"]
    assert row["num_seeds"] == 1
    for key in ("val_loss_std", "val_loss_low", "inference_seconds_per_image", "dropped_share", "capacity_factor"):
        assert row[key] is None
    assert row["num_experts"] == 0


def test_speeds_and_drops_are_means_over_seeds(study: Records) -> None:
    row = rows_by_arm(study)["Token choice"]
    measured = [row[key] for key in ("images_per_second", "inference_seconds_per_image")]
    assert measured == pytest.approx([100.0, 0.01])
    assert [row["dropped_share"], row["dropped_share_same_t"]] == pytest.approx([0.1, 0.2])


def test_dense_runs_that_differ_in_the_placement_of_experts_alone_count_once(write_arms: Callable[..., Path]) -> None:
    """A dense model ignores the placement, so that the second run of a seed is the first one again."""
    arms = {
        f"{router} {placement}": ({"sparse_layers": placement}, {"name": router}, 1e-5)
        for router in ("dense", "expert_choice")
        for placement in ("alternate", "all")
    }
    records = load_records([write_arms(arms)])
    row = rows_by_arm(records)["Dense (same depth)"]
    assert (row["num_seeds"], row["num_diverged"]) == (3, 0)
    assert row["val_loss_std"] == pytest.approx(0.001)
    assert len(records.left_out) == 3
    assert all("it has the same settings and seed as" in entry.reason for entry in records.left_out)
    assert [row["num_seeds"] for row in rows_by_arm(records).values()] == [3, 3, 3]


def test_imported_weights_have_a_row_without_a_loss_and_did_not_diverge(
    tmp_path: Path, write_imported: Callable[..., Any]
) -> None:
    for factor in (2.0, 4.0):
        settings = {"model": {"name": "nano", "block": "dit", "ffn_factor": factor}, "routing": {"name": "dense"}}
        write_imported(tmp_path / str(factor), settings)
    rows = rows_by_arm(load_records([tmp_path]))
    assert len(rows) == 2
    assert {(row["num_seeds"], row["num_diverged"], row["val_loss_mean"]) for row in rows.values()} == {(0, 0, None)}
