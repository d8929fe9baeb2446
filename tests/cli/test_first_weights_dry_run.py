"""`ecdit train --dry-run` with `train.init_from` says what would be taken and what would be new."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from ecdit_cli.app import run
from tests.training_runs import random_run_folder, start

SMALL = ("model=nano", "model.num_layers=2")


def test_a_dry_run_says_what_is_taken_and_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = random_run_folder(tmp_path / "dense", "routing=dense")
    words = ["train", *SMALL, f"train.init_from={parent.path}", "--dry-run", "--run-dir", str(tmp_path / "child")]
    assert run([*words, "--json"]) == 0
    captured = capsys.readouterr()
    name = parent.read_run().name
    taken, differs = captured.err.splitlines()
    assert taken.startswith(f"First weights: ema of {name} after 640 images, tensors taken: modulation 3, embed 2")
    assert taken.endswith("; copied: experts 2; new: router 1.")
    assert differs == (
        f"The first loss differs from that of {name}: with routing.name=expert_choice some tokens have no expert."
    )
    assert json.loads(captured.out)["config"]["train"]["init_from"] == str(parent.path)
    assert not (tmp_path / "child").exists()


def test_it_imports_no_torch_and_a_run_that_has_begun_needs_no_parent(tmp_path: Path) -> None:
    parent = random_run_folder(tmp_path / "dense", "routing=dense")
    words = [*SMALL, f"train.init_from={parent.path}", "--dry-run", "--run-dir"]
    code = "import sys; from ecdit_cli.app import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    process = start([sys.executable, "-c", code, "train", *words, str(tmp_path / "child")])
    said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "First weights: ema of" in said[1]
    child = random_run_folder(tmp_path / "child", *SMALL, f"train.init_from={parent.path}")
    shutil.rmtree(parent.path)
    assert run(["train", *words, str(child.path)]) == 0
