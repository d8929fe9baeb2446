"""`ecdit export-weights`, and what is sampled from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecdit_cli.app import run
from tests.training_runs import random_run_folder

Captured = pytest.CaptureFixture[str]


def test_what_is_exported_makes_the_images_of_the_run(tmp_path: Path, capsys: Captured) -> None:
    trained, out = random_run_folder(tmp_path / "run").path, tmp_path / "weights"
    assert run(["export-weights", str(trained), str(out), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["weights"] == "ema"
    assert {Path(file).name for file in about["files"]} == {"README.md", "model.json", "model.safetensors"}
    grids = []
    for folder in (trained, out):
        grids.append(tmp_path / f"{folder.name}.png")
        assert run(["sample", str(folder), "a red circle", "--grid", str(grids[-1]), "--steps", "2"]) == 0
    assert grids[0].read_bytes() == grids[1].read_bytes()


def test_it_says_what_to_do_next(tmp_path: Path, capsys: Captured) -> None:
    trained, out = random_run_folder(tmp_path / "run").path, tmp_path / "weights"
    assert run(["export-weights", str(trained), str(out), "--precision", "bf16", "--weights", "raw"]) == 0
    assert f"parameters (raw, bf16). Sample them: ecdit sample {out}" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    assert run(["export-weights", str(tmp_path), str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "run.json does not exist" in line
