"""A run on a prepared set whose images have classes: it is trained, sampled by name and evaluated; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ecdit_cli.app import run
from experiments.config.overrides import load_config
from experiments.evaluation.metrics.sampled_metric import caption_set
from experiments.evaluation.sampling.generate import validation_captions
from experiments.records.run_folder import RunDir
from tests.real_images import CLASS_NAMES, IMAGE_SIZE, tensors_of, write_class_folders
from tests.training_runs import random_run_folder

Captured = pytest.CaptureFixture[str]
ROUTED = ("model.block=dit", "routing=dit_moe", "data.name=latents")


@pytest.fixture(scope="module")
def labelled(labelled_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = (*ROUTED, f"data.path={labelled_set}")
    return random_run_folder(tmp_path_factory.mktemp("labelled") / "run", *settings).path


def error_of(arguments: list[str], capsys: Captured) -> str:
    """The one line that a mistake is."""
    assert run(arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_whole_way_from_folders_to_images(
    encoder_folders: dict[str, str], tmp_path: Path, capsys: Captured
) -> None:
    source, out, folder = write_class_folders(tmp_path / "source", 12), tmp_path / "set", tmp_path / "run"
    sizes = ["--image-size", str(IMAGE_SIZE), "--shard-images", "8", "--validation-images", "2"]
    prepare = ["data", "prepare", str(source), str(out), "--vae", encoder_folders["vae"], "--text", "labels", *sizes]
    assert run([*prepare, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["classes"], made["train_images"], made["left_out"]) == (3, 10, 0)
    assert "cut_for_t5" not in made
    assert run(["data", "check", str(out)]) == 0
    short = ["train.images=8", "train.batch_images=4", "eval.images=2", "wandb.mode=disabled"]
    assert run(["train", *ROUTED, f"data.path={out}", *short, "--run-dir", str(folder)]) == 0
    capsys.readouterr()
    named = ["--class", "zebra finch", "--class", "0"]
    assert run(["sample", str(folder), *named, "--guidance", "3", "--steps", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["caption"] for row in printed["images"]] == ["zebra finch", "cat"]


def test_routing_is_measured_on_the_classes_of_the_validation_images(
    labelled: Path, labelled_set: Path, capsys: Captured
) -> None:
    measure = ["evaluate", str(labelled), "--metrics", "routing,validation-loss", "--images", "6", "--steps", "2"]
    assert run([*measure, "--json"]) == 0
    stored = tensors_of(labelled_set, "validation", "label_N").tolist()
    config = load_config([*ROUTED, f"data.path={labelled_set}"])
    assert caption_set(config, "validation", 6).labels == [*stored, *stored[:2]]
    rows = RunDir(labelled).read_rows(RunDir(labelled).routing_maps).rows
    kinds = {kind for row in rows for kind in row.get("load_by_kind") or {}}
    assert kinds == {CLASS_NAMES[label] for label in stored}


def test_a_batch_is_timed_that_is_larger_than_the_validation_split(
    labelled: Path, labelled_set: Path, capsys: Captured
) -> None:
    few = ("--rounds", "1", "--batch-images", "6", "--steps", "1")
    assert run(["evaluate", str(labelled), "--metrics", "inference-time", *few, "--json"]) == 0
    assert {row["num_samples"] for row in json.loads(capsys.readouterr().out)[0]["rows"]} == {6}
    stored = tensors_of(labelled_set, "validation", "label_N").tolist()
    label_B = validation_captions(load_config([*ROUTED, f"data.path={labelled_set}"]), 6)
    assert label_B.tolist() == [*stored, *stored[:2]]


def test_a_class_that_does_not_exist_is_one_line(labelled: Path, labelled_set: Path, capsys: Captured) -> None:
    for given, message in (
        ("zebra", f"{labelled} has no class zebra. Did you mean 'zebra"),
        ("x" * 99, "Name a class by its number, 0 to 2, or one by its name, such as 'cat'."),
        ("3", "class 3 does not exist: the run has 3 classes. Name one from 0 to 2."),
    ):
        assert message in error_of(["sample", str(labelled), "--class", given], capsys)


def test_a_moved_set_is_named_and_another_one_is_refused(
    labelled: Path, labelled_set: Path, latent_set: Path, tmp_path: Path, capsys: Captured
) -> None:
    moved = shutil.copytree(labelled_set, tmp_path / "moved")
    grid = ["--grid", str(tmp_path / "grid.png"), "--steps", "1"]
    assert run(["sample", str(labelled), "--data", str(moved), "--class", "dog", *grid]) == 0
    capsys.readouterr()
    found = error_of(["sample", str(labelled), "--data", str(latent_set), *grid], capsys)
    assert f"data.path={latent_set} is another data set" in found
    gone = error_of(["sample", str(labelled), "--data", str(tmp_path / "gone"), "--class", "dog", *grid], capsys)
    assert "gone is not a folder. Write one with: ecdit data prepare" in gone
