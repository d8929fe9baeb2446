"""Rows with wrong values are left out with their line, in whichever way a file is read; all other runs stay."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.export_tables import export_runs
from analysis.load_records import load_records
from experiments.records.run_folder import RunDir
from experiments.settings_id import settings_id

WriteRun = Callable[..., RunDir]
SHORT: dict[str, Any] = {"train": {"images": 3200}, "eval": {"every_images": 1600}}
LARGE = 10**30


@pytest.fixture
def bad(tmp_path: Path, write_run: WriteRun) -> RunDir:
    """The run that a test damages, beside one that must not suffer."""
    write_run(tmp_path / "runs" / "good", SHORT, lambda images: 64 / images)
    return write_run(tmp_path / "runs" / "bad", SHORT | {"seed": 1}, lambda images: 64 / images)


def change_line(path: Path, number: int, **changes: Any) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | changes, separators=(",", ":"))
    path.write_text("\n".join(lines) + "\n")


def left_out(bad: RunDir) -> list[str]:
    """What is said of the bad run; the good one is whole."""
    records = load_records([bad.path.parent])
    assert str(bad.path.with_name("good")) in set(records.runs["run"])
    assert {entry.run for entry in records.left_out} <= {str(bad.path)}
    return [entry.reason for entry in records.left_out]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss", "9.5"), ("loss", True), ("loss", None), ("images_seen", LARGE), ("images_seen", 320.5),
        ("images_seen", -320), ("seconds", -1.0), ("grad_norm", "0.5"), ("newer", 1), ("auxiliary_loss", "x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", [1, 4])
def test_a_wrong_value_in_a_step_is_named_with_its_line(bad: RunDir, key: str, value: Any, number: int) -> None:
    change_line(bad.steps, number, **{key: value})
    [reason] = left_out(bad)
    assert reason.startswith(f"1 row of steps.jsonl damaged (line {number}: {key}: ")
    steps = load_records([bad.path.parent]).steps
    assert (steps["run"] == str(bad.path)).sum() == 9


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("value", "0.5"), ("value", False), ("num_samples", 1.5), ("num_samples", -1), ("seed", LARGE),
        ("weights", "new"), ("metric", 3), ("settings", [1]), ("settings", {"guidance": "2"}), ("newer", 1),
    ],
)  # fmt: skip
def test_a_wrong_value_in_an_evaluation_is_named_with_its_line(bad: RunDir, key: str, value: Any) -> None:
    change_line(bad.evals, 1, **{key: value})
    [reason] = left_out(bad)
    assert reason.startswith(f"1 row of evals.jsonl damaged (line 1: {key}")


def test_a_wrong_value_in_every_row_is_a_wrong_value_too(bad: RunDir) -> None:
    for number in range(1, 11):
        change_line(bad.steps, number, loss=True)
    reasons = left_out(bad)
    assert reasons[0].startswith("10 rows of steps.jsonl damaged (line 1: loss: ")
    assert reasons[0].endswith("; and 7 more)")


@pytest.mark.parametrize("name", ["steps.jsonl", "evals.jsonl"])
def test_a_key_that_is_there_twice_damages_its_row(bad: RunDir, name: str) -> None:
    path = bad.path / name
    path.write_text(path.read_text().replace('{"images_seen":', '{"images_seen":7,"images_seen":', 1))
    assert left_out(bad)[0] == f"1 row of {name} damaged (line 1: the key 'images_seen' is there twice)"


def test_whole_numbers_are_exact_up_to_the_largest(bad: RunDir) -> None:
    change_line(bad.evals, 1, metric="other", seed=2**62 + 1)
    evals = load_records([bad.path.parent]).evals
    assert 2**62 + 1 in set(evals["seed"])


def test_a_fifo_in_the_place_of_rows_is_named_and_never_blocks(bad: RunDir) -> None:
    bad.evals.unlink()
    os.mkfifo(bad.evals)
    assert left_out(bad)[0] == f"{bad.evals} cannot be read: it is a FIFO, not a regular file"


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("model", "name", "giant", "model.name='giant' is not a preset"),
        ("routing", "name", "newer", "routing.name='newer' is not a router"),
        ("train", "newer", 1, "'train.newer' is not a setting"),
        ("train", "images", "3200", "train.images='3200' is not an integer"),
        ("routing", "num_experts", True, "routing.num_experts=True is not an integer"),
    ],
)
def test_settings_that_this_version_does_not_know_leave_the_run_out(
    bad: RunDir, section: str, key: str, value: Any, said: str
) -> None:
    raw = json.loads(bad.run_json.read_text())
    raw["config"][section][key] = value
    raw["config_id"] = settings_id(raw["config"])
    bad.run_json.write_text(json.dumps(raw))
    assert left_out(bad) == [f"{bad.run_json}: {said}."]
    damaged = export_runs(bad.path.parent).set_index("run")["damaged"]
    assert said in damaged["bad"]
    assert pd.isna(damaged["good"])


def test_a_config_that_is_not_that_of_its_id_leaves_the_run_out(bad: RunDir) -> None:
    raw = json.loads(bad.run_json.read_text())
    raw["config"]["optim"]["learning_rate"] = 1.0
    bad.run_json.write_text(json.dumps(raw))
    assert "its config has the id" in left_out(bad)[0]


def test_the_flops_of_a_large_run_do_not_wrap(bad: RunDir, write_run: WriteRun) -> None:
    from analysis.report.run_rows import run_rows
    from analysis.run_table import run_table

    folder = bad.path.parent.with_name("large")
    write_run(folder / "a", SHORT, lambda images: 1.0, train_flops_per_image=2**61)
    records = load_records([folder])
    assert run_rows(records, run_table(records))["train_flops"].tolist() == [3200.0 * 2**61]
