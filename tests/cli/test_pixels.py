"""Pixels on the command line: prepared without a VAE, trained on, sampled with new captions and by class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ecdit_cli.app import run
from experiments.config.prepared_set import fingerprint_of
from experiments.evaluation.pipeline import Pipeline
from experiments.records.run_folder import RunDir
from tests.command_errors import error_of
from tests.real_images import captioned_images, need_static_extra, write_class_folders
from tests.training_runs import random_run_folder

Captured = pytest.CaptureFixture[str]
SHORT = ["train.images=8", "train.batch_images=4", "eval.images=2", "eval.sample_images=2", "wandb.mode=disabled"]
TINY = ["model=nano", "model.num_layers=2", "model.width=32"]
SIZES = ["--image-size", "16", "--shard-images", "8", "--validation-images", "2"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number, (image, caption) in enumerate(captioned_images(12)):
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def words_run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run on captioned pixels, and beside it the set."""
    need_static_extra()
    folder = tmp_path_factory.mktemp("words")
    assert run(["data", "prepare", str(source), str(folder / "set"), *SIZES]) == 0
    return random_run_folder(folder / "run", f"data.path={folder / 'set'}", "train.batch_images=4")


def test_the_whole_way_with_static_captions(source: Path, tmp_path: Path, capsys: Captured) -> None:
    need_static_extra()
    out, folder = tmp_path / "set", tmp_path / "run"
    assert run(["data", "prepare", str(source), str(out), *SIZES, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["train_images"], made["validation_images"], made["left_out"]) == (10, 2, 0)
    assert (made["pixels"], made["cut_for_static"]) == ("3 x 16 x 16", 0)
    assert run(["data", "check", str(out)]) == 0
    assert run(["train", *TINY, f"data.path={out}", *SHORT, "--run-dir", str(folder)]) == 0
    assert list((folder / "samples").glob("images_*.png"))
    capsys.readouterr()
    grid = tmp_path / "grid.png"
    asked = ["a purple elephant", "two hearts"]
    assert run(["sample", str(folder), *asked, "--steps", "1", "--grid", str(grid), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["caption"] for row in printed["images"]] == asked
    with Image.open(grid) as picture:
        assert np.asarray(picture).std() > 0


def test_the_whole_way_with_classes(tmp_path: Path, capsys: Captured) -> None:
    source, out, folder = write_class_folders(tmp_path / "source", 12), tmp_path / "set", tmp_path / "run"
    prepare = ["data", "prepare", str(source), str(out), "--vae", "none", "--text", "labels", "--flip", *SIZES]
    assert run([*prepare, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 3
    assert run(["train", *TINY, "model.block=dit", f"data.path={out}", *SHORT, "--run-dir", str(folder)]) == 0
    capsys.readouterr()
    assert run(["sample", str(folder), "--class", "zebra finch", "--steps", "1", "--json"]) == 0
    assert [row["caption"] for row in json.loads(capsys.readouterr().out)["images"]] == ["zebra finch"]
    pipeline = Pipeline.from_pretrained(folder)
    assert pipeline(0, num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)


def test_without_captions_those_of_the_validation_set_are_sampled(words_run: RunDir, capsys: Captured) -> None:
    assert run(["sample", str(words_run.path), "--per-caption", "2", "--json"]) == 0
    captions = [row["caption"] for row in json.loads(capsys.readouterr().out)["images"]]
    assert len(captions) == 4
    assert captions[0] == captions[1]


def test_a_caption_that_is_cut_is_said(words_run: RunDir, tmp_path: Path, capsys: Captured) -> None:
    few = ["--steps", "1", "--grid", str(tmp_path / "grid.png")]
    assert run(["sample", str(words_run.path), "a cat", "a cat and " * 60, *few]) == 0
    length = words_run.read_run().config["data"]["caption_length"]
    assert f"1 of 2 captions is cut: the run reads {length} tokens of a caption," in capsys.readouterr().err
    assert run(["sample", str(words_run.path), "a cat", *few]) == 0
    assert "tokens of a caption" not in capsys.readouterr().err


def test_what_cannot_be_done_is_one_line(words_run: RunDir, capsys: Captured) -> None:
    for arguments, message in (
        (["!?"], "its caption has no word that the static embedding knows: '!?'. Use other words."),
        (["--class", "cat"], "is conditioned on captions, so that --class cat does not fit. Leave out --class."),
        (["--compute-map"], "was trained on features of captions, of which no compute map is drawn. Leave out"),
        (["a cat", "--vae", "x"], "--vae x does not fit a run on pixels, which nothing decodes. Leave out --vae."),
    ):
        assert message in error_of(["sample", str(words_run.path), *arguments], capsys)
    with pytest.raises(Exception, match="was trained on features of captions"):
        Pipeline.from_pretrained(words_run.path)


def test_a_set_of_another_embedding_is_refused(words_run: RunDir, tmp_path: Path, capsys: Captured) -> None:
    """The set says which table it was made with; the run's own one is another here."""
    config = words_run.read_run().config
    index_file = Path(config["data"]["path"]) / "index.json"
    content: dict[str, Any] = json.loads(index_file.read_text())
    content["static"]["sha256"] = "0" * 64
    content["fingerprint"] = fingerprint_of(content)
    other = tmp_path / "set"
    other.mkdir()
    for file in index_file.parent.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "index.json").write_text(json.dumps(content))
    trained = random_run_folder(tmp_path / "run", f"data.path={other}", "train.batch_images=4")
    assert "is installed, whose features are others." in error_of(["sample", str(trained.path), "a cat"], capsys)
    assert run(["sample", str(trained.path), "--steps", "1"]) == 0  # stored captions need no table
