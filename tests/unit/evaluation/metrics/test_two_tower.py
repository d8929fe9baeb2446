"""The network of a set is the same when it is trained twice, and one that does not fit is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from experiments.config.features_record import RECORD_FILE, WEIGHTS_FILE, read_features
from experiments.config.metrics import METRICS
from experiments.config.overrides import load_config
from experiments.config.prepared_set import read_index
from experiments.errors import ConfigError
from experiments.evaluation.metrics import train_two_tower
from experiments.evaluation.metrics.sampled_metric import MetricTask, implementation_of
from experiments.evaluation.metrics.train_two_tower import make_features
from experiments.evaluation.metrics.two_tower import TwoTower
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.evaluation.sampling.settings import Conditions
from tests.picture_sets import prepared_pictures

SMALL = 120


@pytest.fixture(autouse=True)
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_two_tower, "NUM_STEPS", 2)
    monkeypatch.setattr(train_two_tower, "BATCH_IMAGES", 96)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 training images with the 8 colours as classes."""
    folder = tmp_path_factory.mktemp("labelled") / "set"
    return prepared_pictures(folder, SMALL + 80, held_out=False, text="labels", validation_images=80)


def silent(done: float, total: float) -> None:
    """Shows nothing."""


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def task_of(folder: Path) -> MetricTask:
    settings = ["model=nano", "model.block=dit", f"data.path={folder}", "train.batch_images=8"]
    config = load_config(settings)
    conditions = Conditions(70, 35, 0, "ema", "fp32", SamplerSettings.of(config))
    return MetricTask(config, conditions, conditions.row(config, 64))


def test_training_twice_gives_the_same_bytes_and_disturbs_nothing(labelled: Path, tmp_path: Path) -> None:
    one, two = copy_of(labelled, tmp_path / "one"), copy_of(labelled, tmp_path / "two")
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    shares: list[float] = []
    record, was_trained = make_features(one, lambda done, total: shares.append(done / total))
    assert (was_trained, shares) == (True, [0.5, 1.0])
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    assert make_features(two, silent)[0] == record
    assert (one / WEIGHTS_FILE).read_bytes() == (two / WEIGHTS_FILE).read_bytes()
    assert (one / RECORD_FILE).read_bytes() == (two / RECORD_FILE).read_bytes()
    assert make_features(one, silent) == (record, False)


def test_classes_are_the_captions_of_a_labelled_set(labelled: Path, tmp_path: Path) -> None:
    folder = copy_of(labelled, tmp_path)
    record, _ = make_features(folder, silent)
    assert record.validation.num_captions == 8
    assert record.held_out is None
    begin("caption-retrieval", task_of(folder))
    assert TwoTower.of(read_index(folder)).captions.weight.shape[0] == 8


def test_without_a_network_the_command_that_trains_it_is_named(labelled: Path) -> None:
    for name in ("frechet-pictures", "precision-recall-pictures", "memorisation-pictures", "caption-retrieval"):
        message = error_of(name, labelled)
        assert "has no network of features, in which its pictures are measured." in message
        assert f"Train it with: ecdit data features {labelled}" in message


def begin(name: str, task: MetricTask) -> None:
    """Asks what is recorded and begins to measure, as `RunScorer` does."""
    metric = implementation_of(METRICS[name])
    metric.recorded_under(METRICS[name], task)
    metric(task)


def error_of(name: str, folder: Path) -> str:
    task = task_of(folder)
    with pytest.raises(ConfigError) as caught:
        begin(name, task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe_version": 0}, "are of recipe 0, and this ecdit has recipe 1. Train it with: ecdit data features"),
        ({"fingerprint": "0123456789abcdef"}, "were trained on another set (fingerprint 0123456789abcdef)."),
        ({"sha256": "0" * 64}, f"{WEIGHTS_FILE} is missing or damaged."),
        ({"validation": None}, f"{RECORD_FILE} is damaged."),
        ({"recipe_version": "new"}, "are of recipe 'new', and this ecdit has recipe 1."),
    ],
)
def test_a_network_that_does_not_fit_is_refused_and_made_anew(
    change: dict[str, object], message: str, labelled: Path, tmp_path: Path
) -> None:
    folder = copy_of(labelled, tmp_path)
    record, _ = make_features(folder, silent)
    path = folder / RECORD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as caught:
        read_features(folder, record.fingerprint)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert make_features(folder, silent) == (record, True)
    assert read_features(folder, record.fingerprint) == record


def test_a_record_that_is_no_file_is_one_line(labelled: Path, tmp_path: Path) -> None:
    folder = copy_of(labelled, tmp_path)
    (folder / RECORD_FILE).mkdir()
    with pytest.raises(ConfigError, match="cannot be read: it is a directory"):
        read_features(folder, read_index(folder).fingerprint)


def test_training_with_metrics_needs_the_network_before_it_begins(labelled: Path, tmp_path: Path) -> None:
    folder = copy_of(labelled, tmp_path)
    settings = ["model=nano", "model.block=dit", f"data.path={folder}", "train.batch_images=8", "eval.metric_images=70"]
    with pytest.raises(ConfigError, match="Train it with: ecdit data features"):
        load_config(settings)
    make_features(folder, silent)
    assert load_config(settings).eval.metric_images == 70
    few = prepared_pictures(tmp_path / "few", 103, held_out=False, text="labels", validation_images=3)
    make_features(few, silent)
    with pytest.raises(ConfigError, match=r"eval\.metric_images=70 does not fit the 3 validation images of"):
        load_config([*settings[:2], f"data.path={few}", *settings[3:], "eval.images=3"])
    with pytest.raises(ConfigError, match=r"eval\.metric_images=1 is too few: frechet-pictures compares a covariance"):
        load_config([*settings, "eval.metric_images=1"])


def test_a_set_that_is_too_small_is_one_line(tmp_path: Path) -> None:
    few = prepared_pictures(tmp_path / "tiny", 80, held_out=False, text="labels", validation_images=2)
    with pytest.raises(ConfigError, match="has 78 training images, fewer than the 96 of a batch"):
        make_features(few, silent)
    one = prepared_pictures(tmp_path / "one", 100, held_out=False, text="labels", validation_images=1)
    with pytest.raises(ConfigError, match="has one class in its validation split, which no other can be mistaken"):
        make_features(one, silent)


def test_a_validation_split_that_is_too_small_for_a_metric_is_one_line(tmp_path: Path) -> None:
    folder = prepared_pictures(tmp_path / "few", 103, held_out=False, text="labels", validation_images=3)
    make_features(folder, silent)
    assert "has 3 validation images: frechet-pictures needs more than its 64 features." in error_of(
        "frechet-pictures", folder
    )


def test_a_damaged_set_is_not_trained_on(labelled: Path, tmp_path: Path) -> None:
    folder = copy_of(labelled, tmp_path)
    shard = next(folder.glob("train-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigError, match="is damaged"):
        make_features(folder, silent)
