"""`ecdit merge`, and what the other commands make of a merged run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecdit_cli.app import run
from tests.training_runs import random_run_folder

Captured = pytest.CaptureFixture[str]
DENSE = ("routing=dense", "eval.images=8", "eval.batch_images=4", "data.image_size=16")


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    return [str(random_run_folder(tmp_path / f"dense{seed}", *DENSE, f"seed={seed}").path) for seed in range(2)]


def test_every_command_takes_a_merged_run(parts: list[str], tmp_path: Path, capsys: Captured) -> None:
    out, weights, tables = (str(tmp_path / name) for name in ("merged", "weights", "tables"))
    assert run(["merge", *parts, out, "--router-from-prompts", "--prompts", "2", "--top-k", "1"]) == 0
    said = capsys.readouterr().err
    assert f"Merged 2 runs into {out}" in said
    assert f"Sample it: ecdit sample {out}" in said
    grid = ["a red circle", "--grid", str(tmp_path / "grid.png")]
    for words in (
        ["sample", out, *grid, "--compute-map"],
        ["evaluate", out, "--metrics", "routing", "--images", "4", "--batch-images", "4"],
        ["status", str(tmp_path)],
        ["export-weights", out, weights],
        ["sample", weights, *grid],
        ["plot", "all", str(tmp_path), "--out", tables],
        ["plot", "specialization", out, "--out", tables],
        ["compare-routing", str(tmp_path), "--out", tables],
        ["export", str(tmp_path), "--out", str(tmp_path / "all")],
    ):
        assert run(words) == 0, words
    assert "SegMoE" in capsys.readouterr().out


def test_a_merged_run_alone_has_no_loss_curve(parts: list[str], tmp_path: Path, capsys: Captured) -> None:
    out = str(tmp_path / "merged")
    assert run(["merge", *parts, out, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["run"] == out
    assert len(about["parts"]) == 2
    assert run(["plot", "loss-convergence", out, "--out", str(tmp_path / "figures")]) == 2
    message = "error: All runs were merged from others and have no curves. Add runs of `ecdit train`."
    assert message in capsys.readouterr().err


def test_a_number_of_prompts_needs_prompts(parts: list[str], tmp_path: Path, capsys: Captured) -> None:
    assert run(["merge", *parts, str(tmp_path / "merged"), "--prompts", "2"]) == 2
    captured = capsys.readouterr()
    message = "--prompts has no effect without --router-from-prompts. Add it, or leave out --prompts."
    assert (captured.out, captured.err) == ("", f"error: {message}\n")
    assert not (tmp_path / "merged").exists()


def test_a_single_run_is_one_line(parts: list[str], tmp_path: Path, capsys: Captured) -> None:
    assert run(["merge", parts[0], str(tmp_path / "merged")]) == 2
    assert capsys.readouterr().err == (
        "error: A merged run has an expert of each run, and only one is named. Name two runs or more.\n"
    )


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["plan"]])
def test_a_merged_run_is_not_trained(command: list[str], capsys: Captured) -> None:
    assert run([*command, "routing=segmoe"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: routing.name=segmoe is not trained: ")
    assert "`ecdit merge RUN RUN OUT`" in error
