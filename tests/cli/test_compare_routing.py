"""`ecdit compare-routing`: rows for machines, a table and one sentence for people; the sweep when no runs are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.published_fid import DISAGREEMENT, published_rows
from ecdit_cli._console import say
from ecdit_cli.app import run
from ecdit_cli.compare_routing import PUBLISHED_TITLE
from sweeps.execution import plan_of
from sweeps.folder import SweepFolder

Captured = pytest.CaptureFixture[str]
WriteRun = Callable[..., Any]

KEYS = {
    "routing", "num_experts", "capacity_factor", "params_total", "params_active", "flops_per_image", "num_seeds",
    "val_loss_mean", "val_loss_std", "images_per_second", "inference_seconds_per_image", "dropped_share",
}  # fmt: skip
SLOPES = {"dense": 1e-6, "token_choice": 2e-6, "switch": 1.2e-6, "shared_expert": 1.6e-6, "expert_choice": 1.5e-6}
FILES = [f"comparison.{kind}" for kind in ("csv", "md", "png", "svg")]


@pytest.fixture
def finished_sweep(tmp_path: Path, write_run: WriteRun) -> Path:
    """Every run of the shipped spec as if it had been trained: the sweep finds nothing left to do."""
    plan = plan_of("routing_comparison", [], say)
    folder = SweepFolder(tmp_path / "sweep")
    for planned in plan.runs:
        slope, seed = SLOPES[planned.config["routing"]["name"]], planned.config["seed"]
        write_run(
            folder.run_dir(planned).path,
            planned.config,
            lambda n, slope=slope, seed=seed: 0.2 - slope * n + 0.001 * seed,
            final={} if slope == 1e-6 else {"dropped_share": 0.05, "dropped_share_same_t": 0.2},
            inference_seconds=0.01,
        )
    return folder.path


@pytest.mark.parametrize("spec", [[], ["--spec", "routing_comparison"]])
def test_without_runs_the_shipped_spec_is_executed_and_then_read(
    spec: list[str], finished_sweep: Path, capsys: Captured
) -> None:
    assert run(["compare-routing", *spec, "--out", str(finished_sweep), "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert "21 of 21 runs are finished and left alone." in captured.err
    assert [(row["routing"], row["arm"]) for row in rows] == [
        ("dense", "Dense (same depth)"),
        ("dense", "Dense (same activated)"),
        ("token_choice", "Token choice"),
        ("switch", "Switch"),
        ("shared_expert", "Shared experts"),
        ("expert_choice", "Expert choice (per image)"),
        ("expert_choice", "Expert choice (groups of 8)"),
    ]
    assert all(row["num_seeds"] == 3 for row in rows)
    assert sorted(path.name for path in (finished_sweep / "tables").glob("comparison.*")) == FILES


def test_the_tables_of_one_sweep_are_written_into_its_folder(
    finished_sweep: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("routing_comparison", [], say)
    SweepFolder(finished_sweep).write_plan(plan)
    monkeypatch.chdir(tmp_path)
    assert run(["compare-routing", "sweep"]) == 0
    assert sorted(path.name for path in (finished_sweep / "tables").glob("comparison.*")) == FILES
    assert run(["plot", "routing", "sweep"]) == 0
    assert (finished_sweep / "figures" / "routing.png").is_file()
    first = plan.runs[0].name
    assert run(["plot", "routing", "sweep/runs"]) == 0  # a folder of runs is no sweep, and stays as it is
    assert (tmp_path / "out" / "figures" / "routing.png").is_file()
    assert first in {path.name for path in (finished_sweep / "runs").iterdir()}
    assert "Loss at one t" in capsys.readouterr().err


def test_json_rows_have_every_key_and_null_where_nothing_was_measured(
    finished_sweep: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert run(["compare-routing", str(finished_sweep), "--out", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(set(row) >= KEYS for row in rows)
    assert rows[0]["dropped_share"] is None
    assert rows[2]["dropped_share"] == pytest.approx(0.05)
    assert rows[2]["val_loss_std"] == pytest.approx(0.001)
    assert rows[2]["images_to_dense_loss"] == pytest.approx(19_200)
    assert {each["router"] for each in rows[2]["published_fid"]} == {"token_choice"}
    assert rows[2]["alarms"] == []


def test_a_person_gets_the_table_and_one_sentence(finished_sweep: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    assert run(["compare-routing", str(finished_sweep), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    table, sentence, published = captured.out.split("\n\n")
    assert len(table.splitlines()) == 8
    title, *models = published.splitlines()
    assert title == PUBLISHED_TITLE
    assert len(models) == len(published_rows(main_only=True)) + 1
    assert DISAGREEMENT in captured.err
    assert sentence.startswith("At nano with 38,400 training images and 3 seeds, the data supports (95% intervals)")
    assert sentence.count(". ") == 0
    assert all(str(out / name) in captured.err for name in FILES)


def test_runs_of_two_validation_sets_are_refused(tmp_path: Path, write_run: WriteRun, capsys: Captured) -> None:
    for seed, images in ((0, 512), (1, 256)):
        settings = {"routing": {"name": "dense"}, "seed": seed, "eval": {"images": images}}
        write_run(tmp_path / f"run{seed}", settings, lambda n: 1.0)
    assert run(["compare-routing", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: Runs differ in eval.images: 512 in " in captured.err


def test_a_spec_beside_runs_is_refused(finished_sweep: Path, capsys: Captured) -> None:
    assert run(["compare-routing", str(finished_sweep), "--spec", "routing_comparison"]) == 2
    assert "--spec routing_comparison runs a sweep, and runs to compare are given too." in capsys.readouterr().err
