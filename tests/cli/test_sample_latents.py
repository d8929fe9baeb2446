"""`ecdit sample` of a run on latents: stored captions, decoded by the VAE of the data set; and what it cannot do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ecdit_cli.app import run
from experiments.data.sources.latents import Latents
from experiments.evaluation.sampling.generate import validation_captions
from experiments.evaluation.sampling.latent_samples import sample_validation
from experiments.evaluation.sampling.load_run import load_run
from experiments.evaluation.sampling.settings import training_conditions
from experiments.records.run_folder import RunDir, read_jsonl
from tests.real_images import save_vae
from tests.training_runs import random_run_folder

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(latent_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ("data.name=latents", f"data.path={latent_set}")
    return random_run_folder(tmp_path_factory.mktemp("latents") / "run", *settings).path


def error_of(arguments: list[str], capsys: Captured) -> str:
    """The one line that a mistake is."""
    assert run(arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_grid_shows_stored_captions(trained: Path, latent_set: Path, tmp_path: Path, capsys: Captured) -> None:
    grid = tmp_path / "grid.png"
    assert run(["sample", str(trained), "--grid", str(grid), "--per-caption", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    config = load_run(RunDir(trained), "raw", print).config
    stored = Latents(config.data).validation_captions(range(4))
    assert [row["caption"] for row in printed["images"]] == [caption for caption in stored for _ in range(2)]
    with Image.open(grid) as picture:
        assert np.asarray(picture).std() > 0


def test_images_are_the_decoded_latents_and_do_not_depend_on_the_batch(trained: Path) -> None:
    loaded = load_run(RunDir(trained), "raw", print)
    conditions = training_conditions(loaded.config, "fp32")
    whole = sample_validation(loaded, 3, 1, conditions)
    alone = sample_validation(loaded, 3, 1, replace(conditions, batch_images=1))
    assert whole.images_BCHW.shape == (3, 3, 32, 32)
    assert whole.images_BCHW.abs().max() <= 1
    torch.testing.assert_close(whole.images_BCHW, alone.images_BCHW, atol=1e-4, rtol=1e-4)
    assert (whole.images_BCHW[0] - whole.images_BCHW[1]).abs().max() > 1e-3


def test_what_cannot_be_done_is_one_line(trained: Path, latent_set: Path, tmp_path: Path, capsys: Captured) -> None:
    other = str(save_vae(tmp_path / "vae", channels=8))
    for arguments, message in (
        (["a red circle"], "its captions are those of its validation set. Leave out the captions."),
        (["--compute-map"], ", of which no compute map is drawn. Leave out --compute-map."),
        (["--vae", other], f"--vae {other} is not the VAE that made the data set."),
        (["--vae", str(tmp_path / "none")], "none is not a folder. Name a folder that AutoencoderKL.save_pretrained"),
        (["--data", str(tmp_path / "gone")], "gone is not a folder. Write one with: ecdit data prepare"),
    ):
        assert message in error_of(["sample", str(trained), *arguments], capsys)
    assert (
        "data.name=latents: shapes-geneval is measured on shapes only. Measure what fits: --metrics validation-loss."
        in error_of(["evaluate", str(trained)], capsys)
    )
    moved = shutil.copytree(latent_set, tmp_path / "moved")
    assert run(["sample", str(trained), "--data", str(moved), "--grid", str(tmp_path / "g.png"), "--steps", "1"]) == 0


def test_the_loader_of_latents_is_measured_beside_training(latent_set: Path, capsys: Captured) -> None:
    small = ("model=nano", "model.width=32", "model.num_layers=2", "train.batch_images=8")
    data = ("data.name=latents", f"data.path={latent_set}")
    quick = ("--steps", "2", "--rounds", "1", "--gib", "0.02", "--clock", "cpu")
    assert run(["bench", "data", *small, *data, *quick, "--json"]) == 0
    row, *read = json.loads(capsys.readouterr().out)
    assert row["ratio"] == pytest.approx(row["loader_images_per_second"] / row["training_images_per_second"])
    assert row["rows_microseconds_per_image"] > 0
    shown = [(one["what"], one["caption_tokens"], one["threads"]) for one in read]
    assert shown == [("latents", tokens, 1) for tokens in (30, 60, 120)]
    for one in read:
        trained = 0.35 * 989.4e12 / one["train_flops_per_image"]
        assert one["trained_at_35_percent"] == pytest.approx(trained)
        assert one["ratio_at_35_percent"] == pytest.approx(one["loader_images_per_second"] / trained)
        assert one["bytes_per_image"] > one["caption_tokens"] * 8192


def test_the_time_of_an_image_is_measured_without_its_decoder(trained: Path) -> None:
    few = ("--rounds", "1", "--batch-images", "2", "--steps", "2")
    assert run(["evaluate", str(trained), "--metrics", "inference-time", *few]) == 0
    recorded = {row["metric"]: row for row in read_jsonl(RunDir(trained).evals).rows}
    assert recorded["inference_seconds_per_image"]["value"] > 0
    assert recorded["inference_seconds_per_image"]["num_samples"] == 2


def test_captions_come_anew_from_the_first_where_the_validation_split_has_fewer(trained: Path) -> None:
    config = load_run(RunDir(trained), "raw", print).config
    four = validation_captions(config, 4)
    assert not torch.equal(four[0][0], four[0][1])
    for part, stored in zip(validation_captions(config, 10), four, strict=True):
        assert len(stored) == 4
        assert torch.equal(part, torch.cat([stored, stored, stored[:2]]))


def test_an_export_of_stored_captions_is_refused_before_anything_is_sampled(
    trained: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "dsg" / "images").mkdir(parents=True)
    (tmp_path / "dsg" / "images" / "custom_4_ecdit.jpg").touch()  # four captions are stored
    grid = tmp_path / "grid.png"
    found = error_of(["sample", str(trained), "--dsg", str(tmp_path / "dsg"), "--grid", str(grid)], capsys)
    assert "holds custom_4_ecdit.jpg of other images. Choose an empty folder." in found
    assert not grid.exists()
