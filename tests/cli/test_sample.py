"""`ecdit sample`: images of captions, what the judge says of them, and where the compute went."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from ecdit_cli.app import run
from experiments.records.run_folder import RunDir
from tests.training_runs import random_run_folder

Captured = pytest.CaptureFixture[str]
QUICK = ("--steps", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run_folder(tmp_path_factory.mktemp("sample") / "ec", "routing=expert_choice").path


def pixels_of(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int64)


def error_of(arguments: list[str], capsys: Captured) -> str:
    """The one line that a mistake is."""
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_a_grid_and_a_verdict_for_every_image(trained: Path, tmp_path: Path, capsys: Captured) -> None:
    grid = tmp_path / "grids" / "mine.png"
    captions = ["a red circle left of a blue square", "two green hearts"]
    assert run(["sample", str(trained), *captions, "--grid", str(grid), "--per-caption", "2", "--json", *QUICK]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["caption"] for row in printed["images"]] == [c for c in captions for _ in range(2)]
    assert all(row["verdict"] == "right" or row["verdict"].startswith("wrong: ") for row in printed["images"])
    assert printed["files"] == [str(grid)]
    assert pixels_of(grid).shape[1] > 400


def test_without_captions_there_is_one_of_each_kind_in_the_folder_of_the_run(trained: Path, capsys: Captured) -> None:
    assert run(["sample", str(trained), *QUICK]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1 + 6
    assert "of 6 show exactly what their caption says." in captured.err
    assert f"Wrote {RunDir(trained).samples / 'grid.png'}" in captured.err


def test_the_compute_map_is_drawn_with_its_numbers(trained: Path, tmp_path: Path, capsys: Captured) -> None:
    grid = tmp_path / "grid.png"
    assert run(["sample", str(trained), "a circle", "--grid", str(grid), "--compute-map", "--json", *QUICK]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [Path(name).name for name in files] == ["grid.png"] + [
        f"grid-compute-map.{k}" for k in ("png", "svg", "csv")
    ]
    numbers = pd.read_csv(files[-1])
    means = numbers[numbers["layer"].isna()]
    assert set(means["caption"]) == {"a circle"}
    assert means["experts"].mean() == pytest.approx(2.0)  # the capacity factor
    assert not RunDir(trained).compute_map.exists()  # that is the evaluation's


def test_seeds_name_images_and_the_batch_does_not_matter(trained: Path, tmp_path: Path) -> None:
    def pixels(name: str, *options: str) -> NDArray[np.int64]:
        captions = ["a circle", "a red bar", "a heart"]
        path = tmp_path / f"{name}.png"
        assert run(["sample", str(trained), *captions, "--grid", str(path), *QUICK, *options]) == 0
        return pixels_of(path)

    one = pixels("one")
    assert np.abs(one - pixels("two", "--batch-images", "1")).max() <= 1
    assert np.abs(one - pixels("three", "--seed", "1")).max() > 50


def test_words_that_the_run_never_saw_are_named(trained: Path, capsys: Captured) -> None:
    line = error_of(["sample", str(trained), "a purple circle on a table"], capsys)
    assert "'purple', 'on', 'table'" in line
    assert "colours: red" in line


def test_known_words_in_a_new_order_are_sampled_without_a_verdict(trained: Path, capsys: Captured) -> None:
    assert run(["sample", str(trained), "circle red a", "--json", *QUICK]) == 0
    assert "verdict" not in {k for k, v in json.loads(capsys.readouterr().out)["images"][0].items() if v is not None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guidance-interval", "0.9,0.1"], "--guidance-interval '0.9,0.1' is not START,STOP"),
        (["--grid", "grid.jpg"], "is not a PNG"),
        (["--captions", "missing.txt"], "missing.txt"),
        (["--vae", "x"], "--vae x does not fit a run on pixels, which nothing decodes. Leave out --vae."),
        (["--data", "x"], "--data x does not fit data.name=shapes, whose images are in no folder. Leave out --data."),
    ],
)
def test_mistakes_in_options_are_one_line(trained: Path, capsys: Captured, options: list[str], message: str) -> None:
    assert message in error_of(["sample", str(trained), *options], capsys)


def test_a_dense_run_has_no_compute_map(tmp_path: Path, capsys: Captured) -> None:
    dense = random_run_folder(tmp_path / "dense", "routing=dense").path
    assert "is a dense model" in error_of(["sample", str(dense), "--compute-map", *QUICK], capsys)


def test_exports_hold_every_image(trained: Path, tmp_path: Path) -> None:
    captions = ["a red circle", "two hearts"]
    folders = ["--geneval", str(tmp_path / "geneval"), "--dsg", str(tmp_path / "dsg")]
    grid = ["--grid", str(tmp_path / "grid.png")]
    assert run(["sample", str(trained), *captions, "--per-caption", "2", *grid, *folders, *QUICK]) == 0
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} - {"grid.png"}
    samples = {f"geneval/{i:05}/samples/{j:04}.png" for i in range(2) for j in range(2)}
    assert samples | {"geneval/00000/metadata.jsonl", "geneval/00001/metadata.jsonl", "dsg/prompts.csv"} <= found
    assert sum(name.startswith("dsg/images/") for name in found) == 2


def test_the_grid_of_many_images_shows_some_and_the_export_holds_all(
    trained: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.figures.sample_grid.MOST_IMAGES", 5)
    grids, captions = [tmp_path / "some.png", tmp_path / "two.png"], ["a circle", "a heart", "a bar"]
    options = ["--per-caption", "2", "--geneval", str(tmp_path / "geneval"), "--grid", str(grids[0]), *QUICK]
    assert run(["sample", str(trained), *captions, *options]) == 0
    captured = capsys.readouterr()
    assert "The grid shows the images of the first 2 of 3 captions." in captured.err
    assert len(captured.out.splitlines()) == 1 + 6
    assert len(list((tmp_path / "geneval").glob("*/samples/*.png"))) == 6
    assert run(["sample", str(trained), *captions[:2], "--per-caption", "2", "--grid", str(grids[1]), *QUICK]) == 0
    assert np.abs(pixels_of(grids[0]) - pixels_of(grids[1])).max() <= 1


def test_captions_may_come_from_a_file(trained: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "captions.txt").write_text("a circle\n\na blue bar\n")
    grid = str(tmp_path / "grid.png")
    assert (
        run(["sample", str(trained), "--captions", str(tmp_path / "captions.txt"), "--grid", grid, "--json", *QUICK])
        == 0
    )
    assert [row["caption"] for row in json.loads(capsys.readouterr().out)["images"]] == ["a circle", "a blue bar"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["circle red a", "--geneval", "OUT"],
            "GenEval cannot judge 'circle red a': it is not a caption of the shapes",
        ),
        (["a circle", "--geneval", "OTHER"], "holds 00007 of other images. Choose an empty folder."),
        (["a circle", "--dsg", "OTHER"], "holds x.jpg of other images. Choose an empty folder."),
        (
            ["a circle", "--captions", "PROMPTS", "--dsg", "OUT"],
            "two of the captions would have the item_id 'custom_0'",
        ),
        (["--dsg", "OTHER"], "holds x.jpg of other images. Choose an empty folder."),
    ],
)
def test_exports_that_cannot_be_made_are_refused_before_anything_is_sampled(
    options: list[str], message: str, trained: Path, tmp_path: Path, capsys: Captured
) -> None:
    places = {"OUT": tmp_path / "out", "OTHER": tmp_path / "other", "PROMPTS": tmp_path / "prompts.csv"}
    (places["OTHER"] / "00007").mkdir(parents=True)
    (places["OTHER"] / "images").mkdir()
    (places["OTHER"] / "images" / "x.jpg").touch()
    places["PROMPTS"].write_text("item_id,text\ncustom_0,a square\n")
    words = [str(places.get(word, word)) for word in options]
    assert message in error_of(["sample", str(trained), *words, "--grid", str(tmp_path / "grid.png")], capsys)
    assert not (tmp_path / "grid.png").exists()
    assert not places["OUT"].exists()
