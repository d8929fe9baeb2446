"""`--from wandb:ENTITY/PROJECT`: commands read runs of W&B beside run folders, or instead of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb

from ecdit_cli.app import run
from experiments.records.record_types import EvalRow, StepRow
from experiments.records.run_folder import RunDir
from experiments.records.wandb_mirror import start_mirror
from experiments.records.writer import RecordWriter, stored_rows

Captured = pytest.CaptureFixture[str]
PLACE = "wandb:me/ecdit"
SHORT = {"train": {"images": 3200}, "eval": {"every_images": 1600}, "wandb": {"mode": "online"}}


@pytest.fixture
def runs(tmp_path: Path, write_run: Callable[..., RunDir], wandb_server: object) -> Path:
    """Four runs: two here and two in W&B."""
    for router in ("dense", "expert_choice"):
        for seed in (0, 1):
            folder = tmp_path / "runs" / f"{router}-{seed}"
            settings = SHORT | {"routing": {"name": router}, "seed": seed}
            done = write_run(folder, settings, lambda n, seed=seed: 0.2 - n / 1e5 + seed / 1e3)
            if router == "dense":
                continue
            writer = RecordWriter.open(RunDir(tmp_path / "mirrored" / folder.name), done.read_run(), 0, start_mirror)
            for row in stored_rows(done.steps, StepRow):
                writer.step(row)
                writer.evaluation(
                    [each for each in stored_rows(done.evals, EvalRow) if each.images_seen == row.images_seen]
                )
            writer.status("done", 3200)
            writer.close()
            shutil.rmtree(folder)
    wandb.teardown()
    return tmp_path / "runs"


def test_folders_and_a_project_are_compared_together(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert run(["compare-routing", str(runs), "--from", PLACE, "--json", *out]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["routing"]: row["num_seeds"] for row in rows} == {"dense": 2, "expert_choice": 2}


def test_a_project_alone_is_plotted(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["plot", "loss-convergence", "--from", PLACE, "--out", str(tmp_path / "out")]) == 0
    (table,) = (Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith(".csv"))
    assert "Expert choice" in table.read_text()
    assert "Dense" not in table.read_text()


def test_a_report_says_how_to_read_them_again(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["report", str(runs), "--from", PLACE, "--out", str(tmp_path / "report")]) == 0
    assert f"ecdit report {runs} --from {PLACE}" in (tmp_path / "report" / "report.md").read_text()


def test_a_project_that_does_not_exist_is_one_line(runs: Path, capsys: Captured) -> None:
    assert run(["plot", "all", "--from", "wandb:me/none"]) == 2
    assert "error: W&B has no project me/none" in capsys.readouterr().err
