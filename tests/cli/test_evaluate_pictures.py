"""`ecdit data features` and `ecdit evaluate` of a run on prepared pictures: what is printed, recorded and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecdit_cli.app import run
from experiments.config.features_record import RECORD_FILE
from experiments.evaluation.metrics import train_two_tower
from experiments.records.run_folder import RunDir, read_jsonl
from tests.command_errors import error_of
from tests.picture_sets import prepared_pictures
from tests.real_images import need_static_extra
from tests.training_runs import random_run_folder

need_static_extra()
Captured = pytest.CaptureFixture[str]
FEW = ("--images", "70", "--steps", "1", "--batch-images", "35")
ALL = "frechet-pictures,precision-recall-pictures,memorisation-pictures,caption-retrieval"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = prepared_pictures(tmp_path_factory.mktemp("pictures") / "set", 480)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_two_tower, "NUM_STEPS", 3)
        patch.setattr(train_two_tower, "BATCH_IMAGES", 32)
        assert run(["data", "features", str(folder)]) == 0
        yield folder


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    random_run_folder(folder, f"data.path={pictures}", "routing=expert_choice")
    return folder


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(RunDir(folder).evals).rows if row["metric"] != "val_loss"]


def test_the_accuracy_on_true_images_is_printed_and_the_network_is_made_once(pictures: Path, capsys: Captured) -> None:
    before = (pictures / RECORD_FILE).read_bytes()
    assert run(["data", "features", str(pictures)]) == 0
    printed = capsys.readouterr()
    assert "Finished already, nothing to do" in printed.err
    assert "validation retrieval" in printed.out
    assert "held out retrieval" in printed.out
    assert "of 200, among 100" in printed.out
    assert run(["data", "features", str(pictures), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["validation"]["num_captions"] == 100
    assert row["fingerprint"] == json.loads((pictures / "index.json").read_text())["fingerprint"]
    assert (pictures / RECORD_FILE).read_bytes() == before
    assert run(["data", "check", str(pictures)]) == 0


def test_a_run_on_pictures_is_measured_by_default_with_what_works_there(
    trained: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    assert run(["evaluate", str(folder), *FEW]) == 0
    printed = capsys.readouterr()
    head = printed.out.splitlines()[0]
    for column in ("frechet-pictures", "retrieval", "of true images", "held-out retrieval", "held-out, true images"):
        assert column in head
    assert "retrieval: share of samples whose own caption is the nearest of 100" in printed.err
    rows = {row["metric"]: row for row in recorded(folder)}
    assert set(rows) == {
        "frechet-pictures", "caption-retrieval", "caption-retrieval-true", "caption-retrieval-held-out",
        "caption-retrieval-held-out-true",
    }  # fmt: skip
    assert (rows["caption-retrieval"]["num_samples"], rows["caption-retrieval-held-out"]["num_samples"]) == (70, 35)
    assert run(["evaluate", str(folder), "--metrics", ALL, *FEW]) == 0
    assert "frechet-pictures, caption-retrieval recorded already." in capsys.readouterr().err
    assert len(recorded(folder)) == 11
    assert run(["evaluate", str(folder), "--metrics", ALL, *FEW]) == 0
    assert f"{ALL.replace(',', ', ')} recorded already." in capsys.readouterr().err
    assert len(recorded(folder)) == 11
    for figure in ("alignment", "image-quality"):
        assert run(["plot", figure, str(folder), "--out", str(tmp_path / "figures")]) == 0
        assert (tmp_path / "figures" / f"{figure}.png").is_file()


def test_a_value_of_another_network_is_measured_anew(
    trained: Path, pictures: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    command = ["evaluate", str(folder), "--metrics", "frechet-pictures", *FEW]
    assert run(command) == 0
    record = (pictures / RECORD_FILE).read_bytes()
    weights = (pictures / "features.safetensors").read_bytes()
    (pictures / RECORD_FILE).unlink()
    try:
        capsys.readouterr()
        assert "has no network of features" in error_of(command, capsys)
        monkeypatch.setattr(train_two_tower, "SEED", 1)
        assert run(["data", "features", str(pictures)]) == 0
        assert run(command) == 0
    finally:
        (pictures / RECORD_FILE).write_bytes(record)
        (pictures / "features.safetensors").write_bytes(weights)
    one, two = recorded(folder)
    assert one["settings"]["features"] != two["settings"]["features"]
    assert one["value"] != two["value"]


def test_metrics_of_scenes_and_of_pictures_are_refused_on_the_other_data(
    trained: Path, tmp_path: Path, capsys: Captured
) -> None:
    random_run_folder(tmp_path / "scenes")
    for folder, metric, data, where in (
        (trained, "shapes-geneval", "pixels", "shapes"),
        (trained, "routing", "pixels", "shapes and data with classes"),
        (tmp_path / "scenes", "caption-retrieval", "shapes", "pixels"),
        (tmp_path / "scenes", "memorisation-pictures", "shapes", "pixels"),
    ):
        line = error_of(["evaluate", str(folder), "--metrics", metric, *FEW], capsys)
        assert f"was trained with data.name={data}: {metric} is measured on {where} only. Measure what fits: " in line
    assert "--metrics frechet-pictures,precision-recall-pictures,memorisation-pictures,caption-retrieval" in error_of(
        ["evaluate", str(trained), "--metrics", "shapes-geneval"], capsys
    )


def test_features_of_what_holds_no_pixels_are_refused_before_torch(tmp_path: Path, capsys: Captured) -> None:
    assert "holds no data set." in error_of(["data", "features", str(tmp_path)], capsys)


def test_clip_and_fid_measure_pictures_too(trained: Path, capsys: Captured) -> None:
    line = error_of(["evaluate", str(trained), "--metrics", "fid", *FEW], capsys)
    assert "FID needs the weights of InceptionV3." in line


@pytest.mark.slow
def test_training_measures_pictures_as_evaluating_does(pictures: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "run"
    tiny = (
        "model=nano", "model.width=32", "model.num_layers=2", "train.images=32", "train.batch_images=16",
        "eval.every_images=16", "eval.images=16", "eval.sample_images=0", "eval.sample_steps=1", "train.precision=fp32",
        "eval.metric_images=70", "wandb.mode=disabled",
    )  # fmt: skip
    assert run(["train", *tiny, f"data.path={pictures}", "--run-dir", str(folder)]) == 0
    trained = {(row["images_seen"], row["metric"]): row for row in recorded(folder)}
    assert {metric for images, metric in trained if images == 16} >= {"frechet-pictures", "caption-retrieval-held-out"}
    capsys.readouterr()
    assert run(["evaluate", str(folder), "--images", "70", "--batch-images", "32"]) == 0
    assert "frechet-pictures, caption-retrieval recorded already." in capsys.readouterr().err
    assert run(["evaluate", str(folder), "--images", "70", "--batch-images", "32", "--again"]) == 0
    again = recorded(folder)[-1]
    assert again["value"] == pytest.approx(trained[32, again["metric"]]["value"])
    assert run(["plot", "quality-over-training", str(folder), "--out", str(tmp_path / "figures")]) == 0
