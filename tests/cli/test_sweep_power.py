"""`ecdit sweep --dry-run --power` says which gap the seeds of a plan separate, before anything is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.power import power
from ecdit_cli.app import run

LOSSES = {"dense": [0.130, 0.132, 0.131], "expert_choice": [0.1299, 0.1322, 0.1301]}


@pytest.fixture
def earlier(tmp_path: Path, write_run: Callable[..., Any]) -> str:
    for router, by_seed in LOSSES.items():
        for seed, loss in enumerate(by_seed):
            settings = {"routing": {"name": router}, "train": {"images": 3200}, "seed": seed}
            write_run(tmp_path / "earlier" / f"{router}-{seed}", settings, lambda n, at=loss: at, eval_images=[3200])
    return str(tmp_path / "earlier")


PLAN = ["sweep", "quickstart", "--dry-run", "--no-calibration", "--power"]


def test_the_smallest_gap_and_the_seeds_are_printed_below_the_costs(
    earlier: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*PLAN, earlier]) == 0
    shown = capsys.readouterr().out
    assert "val_loss: with 3 seeds an arm (paired by seed) the plan separates a gap of" in shown
    assert "more than 1,000" in shown or "Expert choice" in shown


def test_json_holds_the_same_numbers(earlier: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*PLAN, earlier, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["power"]
    assert (found["num_seeds"], found["is_paired"], found["metric"]) == (3, True, "val_loss")
    assert power(found["smallest_gap"], found["spread"], 3) == pytest.approx(0.8, abs=1e-6)
    assert [row["arm"] for row in found["gaps"]] == ["Expert choice"]


TUNE = "ecdit.tune={'optim.clip_norm': [0.5, 1.0], 'on': {'train.images': 640}}"


def test_runs_that_tune_the_arms_are_no_arms(earlier: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for words in ([], [TUNE]):
        assert run([*PLAN, earlier, "--json", *words]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [plan["total"].get("num_tuning_runs") for plan in found] == [None, 6]
    assert found[0]["power"] == found[1]["power"]


def test_it_needs_a_dry_run(earlier: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "quickstart", "--power", earlier]) == 2
    message = "--power is for plans, and needs --dry-run. Add --dry-run, or leave it out."
    assert message in capsys.readouterr().err


def test_an_earlier_sweep_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*PLAN, str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'} is not a folder." in capsys.readouterr().err
