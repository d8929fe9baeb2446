"""`ecdit sample` and `ecdit evaluate` of runs that are conditioned on classes, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecdit_cli.app import run
from experiments.data.scenes.classes import class_name
from experiments.records.run_folder import RunDir
from tests.training_runs import random_run_folder

Captured = pytest.CaptureFixture[str]
QUICK = ("--steps", "2")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run_folder(tmp_path_factory.mktemp("classes") / "run", "model.block=dit").path


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run_folder(tmp_path_factory.mktemp("captions") / "run").path


def error_of(arguments: list[str], capsys: Captured) -> str:
    """The one line that a mistake is."""
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_images_of_the_classes_that_were_named(labelled: Path, tmp_path: Path, capsys: Captured) -> None:
    grid = tmp_path / "grid.png"
    named = ["--class", "383", "--class", "0", "--per-caption", "2", "--compute-map"]
    assert run(["sample", str(labelled), *named, "--grid", str(grid), "--json", *QUICK]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["caption"] for row in printed["images"]] == [class_name(n) for n in (383, 383, 0, 0)]
    assert all(row["verdict"] is None for row in printed["images"])  # a class does not say all that a caption does
    assert str(grid) in printed["files"]


def test_a_class_may_be_named(labelled: Path, capsys: Captured) -> None:
    assert run(["sample", str(labelled), "--class", "counting: red circle", "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["caption"] == "counting: red circle"


def test_without_classes_some_far_apart_are_shown(labelled: Path, capsys: Captured) -> None:
    assert run(["sample", str(labelled), *QUICK]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 6


def test_a_caption_for_classes_and_the_reverse_are_one_line(labelled: Path, captioned: Path, capsys: Captured) -> None:
    found = error_of(["sample", str(labelled), "a circle"], capsys)
    assert f"{labelled} is conditioned on classes and reads no captions." in found
    assert found.endswith("Name classes from 0 to 383 instead: --class 0 --class 1.")
    found = error_of(["sample", str(captioned), "--class", "3"], capsys)
    assert f"{captioned} is conditioned on captions, so that --class 3 does not fit. Leave out --class." in found


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("384", "class 384 does not exist: the run has 384 classes. Name one from 0 to 383."),
        ("-1", "class -1 does not exist: the run has 384 classes. Name one from 0 to 383."),
        (str(10**30), "Name a class by its number, 0 to 383, or one by its name, such as"),
        ("position: red circel", "has no class position: red circel. Did you mean 'position: red circle'?"),
    ],
)
def test_a_class_that_does_not_exist_is_one_line(label: str, message: str, labelled: Path, capsys: Captured) -> None:
    assert message in error_of(["sample", str(labelled), "--class", label], capsys)


def test_an_export_of_classes_is_refused_before_anything_is_sampled(
    labelled: Path, tmp_path: Path, capsys: Captured
) -> None:
    grid, out = tmp_path / "grid.png", tmp_path / "out"
    for words, message in (
        (["--class", "3", "--geneval", str(out)], "GenEval cannot judge '"),
        (["--geneval", str(out)], "GenEval cannot judge '"),
        (["--class", "384", "--dsg", str(out)], "class 384 does not exist: the run has 384 classes."),
    ):
        assert message in error_of(["sample", str(labelled), *words, "--grid", str(grid)], capsys)
    assert not grid.exists()
    assert not out.exists()


def test_metrics_that_compare_with_captions_are_refused_and_others_are_measured(
    labelled: Path, capsys: Captured
) -> None:
    found = error_of(["evaluate", str(labelled), "--images", "4", *QUICK], capsys)
    assert f"shapes-geneval compares images with captions, and {labelled} is conditioned on classes." in found
    measure = ["evaluate", str(labelled), "--metrics", "frechet-shapes,routing", "--images", "4", *QUICK, "--json"]
    assert run(measure) == 0
    assert {row["metric"] for row in RunDir(labelled).read_rows(RunDir(labelled).evals).rows} >= {
        "frechet-shapes", "sampled_dropped_share", "object_compute_ratio",
    }  # fmt: skip
