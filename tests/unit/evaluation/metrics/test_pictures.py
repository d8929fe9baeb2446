"""The metrics of prepared pictures on images of which the answer is known: true ones, noise, copies, exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.config.features_record import FeaturesRecord, read_features
from experiments.config.metric_row import CaptionSplit
from experiments.config.metrics import METRICS
from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.data.sources.pixels import Pixels
from experiments.evaluation.metrics import train_two_tower
from experiments.evaluation.metrics.caption_pool import CaptionPool
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, implementation_of
from experiments.evaluation.metrics.train_two_tower import make_features
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.evaluation.sampling.settings import Conditions
from experiments.evaluation.score import MetricSet
from experiments.flow.samplers import Guidance
from experiments.records.record_types import EvalRow
from tests.picture_sets import NUM_VALIDATION, prepared_pictures
from tests.real_images import need_static_extra

need_static_extra()
ALL = ("frechet-pictures", "precision-recall-pictures", "memorisation-pictures", "caption-retrieval")
NUM_STEPS, BATCH_IMAGES = 80, 64
SEEN = 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = prepared_pictures(tmp_path_factory.mktemp("pictures") / "set", flip=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_two_tower, "NUM_STEPS", NUM_STEPS)
        patch.setattr(train_two_tower, "BATCH_IMAGES", BATCH_IMAGES)
        make_features(made, lambda done, total: None)
    return made


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return load_config(["model=nano", f"data.path={folder}", "train.batch_images=8"])


@pytest.fixture(scope="module")
def record(folder: Path, config: RunConfig) -> FeaturesRecord:
    assert config.data.fingerprint is not None
    return read_features(folder, config.data.fingerprint)


@pytest.fixture(scope="module")
def source(config: RunConfig) -> Pixels:
    return Pixels(config.data)


def task_of(config: RunConfig, num_images: int, images_seen: int = SEEN) -> MetricTask:
    how = Conditions(num_images, 50, 0, "ema", "fp32", SamplerSettings(2, Guidance(2.0)))
    return MetricTask(config, how, how.row(config, images_seen))


def measured(
    config: RunConfig, images: dict[CaptionSplit, Tensor], names: tuple[str, ...] = ALL, images_seen: int = SEEN
) -> dict[str, EvalRow]:
    """What the metrics say of images that stand for samples of the first captions of each split."""
    metrics = MetricSet(names, task_of(config, len(images["validation"]), images_seen))
    for part in metrics.parts:
        for first in range(0, len(part.numbers), 50):
            metrics.add(part.numbers[first : first + 50], images[part.split][first : first + 50])
    return {row.metric: row for row in metrics.rows()}


def of_rows(source: Pixels, split: CaptionSplit, num: int) -> Tensor:
    return source.stored(split, [number % source.num_images(split) for number in range(num)])


@pytest.fixture(scope="module")
def of_true(config: RunConfig, source: Pixels) -> dict[str, EvalRow]:
    images: dict[CaptionSplit, Tensor] = {
        "validation": of_rows(source, "validation", NUM_VALIDATION),
        "held_out": of_rows(source, "held_out", NUM_VALIDATION // 2),
    }
    return measured(config, images)


def test_true_images_score_what_the_network_was_measured_with(
    of_true: dict[str, EvalRow], record: FeaturesRecord, source: Pixels
) -> None:
    assert record.validation.num_images == NUM_VALIDATION
    assert record.validation.num_captions == 100
    accuracy = record.validation.num_right / NUM_VALIDATION
    assert accuracy > 0.15
    assert of_true["caption-retrieval"].value == of_true["caption-retrieval-true"].value == accuracy
    assert record.held_out is not None
    num_held_out = source.num_images("held_out")
    assert (record.held_out.num_images, of_true["caption-retrieval-held-out"].num_samples) == (num_held_out, 100)
    held_out = of_true["caption-retrieval-held-out-true"]
    assert held_out.num_samples == num_held_out < 100  # the samples begin anew, the true images are counted once
    assert held_out.value == record.held_out.num_right / num_held_out > 0.1


def test_noise_and_exchanged_captions_are_found_by_chance(config: RunConfig, source: Pixels) -> None:
    noise = torch.rand(400, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    true = of_rows(source, "validation", NUM_VALIDATION)
    exchanged = true[torch.randperm(NUM_VALIDATION, generator=torch.Generator().manual_seed(1))].repeat(2, 1, 1, 1)
    for images in (noise, exchanged):
        found = measured(config, {"validation": images, "held_out": images[:200]}, ("caption-retrieval",))
        assert found["caption-retrieval"].value < 0.035
        assert found["caption-retrieval-true"].value > 0.15


def test_true_images_are_near_and_noise_is_far(of_true: dict[str, EvalRow], config: RunConfig, source: Pixels) -> None:
    """The true images are the reference itself here; held-out ones are others of the same distribution."""
    assert of_true["frechet-pictures"].value == pytest.approx(0, abs=1e-4)
    assert of_true["precision-pictures"].value == of_true["precision-pictures-true"].value > 0.6
    assert of_true["recall-pictures"].value > 0.6
    others = of_rows(source, "held_out", source.num_images("held_out"))
    noise = torch.rand(others.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    near, far = (measured(config, {"validation": images}, ALL[:2]) for images in (others, noise))
    assert 0 < 3 * near["frechet-pictures"].value < far["frechet-pictures"].value
    assert near["precision-pictures"].value > 0.6
    assert far["precision-pictures"].value < 0.1
    assert far["precision-pictures-true"].value > 0.6
    assert far["recall-pictures"].value < 0.1


def test_one_kind_of_pictures_has_precision_and_no_recall(config: RunConfig, source: Pixels) -> None:
    same = source.stored("train", [0]).repeat(100, 1, 1, 1) + 0.02 * torch.randn(
        100, 3, 16, 16, generator=torch.Generator().manual_seed(0)
    )
    found = measured(config, {"validation": same}, ("precision-recall-pictures",))
    assert found["precision-pictures"].value > 0.9
    assert found["recall-pictures"].value < 0.1


def test_copies_of_training_are_found_also_mirrored_ones_and_held_out_images_are_none(
    config: RunConfig, source: Pixels
) -> None:
    copies = source.stored("train", source.seen_by(100))
    may_be = source.may_be_mirrored("train", source.seen_by(100))
    assert 0 < int(may_be.sum()) < 100  # captions that name a side are never mirrored
    mirrored = copies[may_be].flip(-1)
    for images in (copies, mirrored):
        rows = measured(config, {"validation": images}, ("memorisation-pictures",))
        assert rows["copied-share-pictures"].value == 1
        assert rows["nearest-training-distance-pictures"].value == pytest.approx(0, abs=1e-4)
    others = of_rows(source, "held_out", source.num_images("held_out"))
    rows = measured(config, {"validation": others}, ("memorisation-pictures",))
    assert rows["copied-share-pictures"].value < 0.08  # 1% is expected of 64
    held_out = rows["nearest-training-distance-validation-pictures"]
    assert rows["nearest-training-distance-pictures"].value == pytest.approx(held_out.value, rel=0.15)


def test_images_that_training_has_not_seen_yet_are_no_copies(config: RunConfig, source: Pixels) -> None:
    later = source.stored("train", source.seen_by(SEEN)[150:250])
    rows = measured(config, {"validation": later}, ("memorisation-pictures",), images_seen=100)
    assert rows["copied-share-pictures"].value < 0.1
    assert rows["copied-share-pictures"].settings["training_images"] == 100


def test_rows_name_the_network_and_what_was_compared(
    of_true: dict[str, EvalRow], record: FeaturesRecord, source: Pixels
) -> None:
    assert all(row.settings["features"] == record.digest for row in of_true.values())
    assert of_true["frechet-pictures"].settings["reference_images"] == NUM_VALIDATION
    assert of_true["precision-pictures"].settings["reference_images"] == source.num_images("train")
    counts = of_true["copied-share-pictures"].settings
    assert (counts["training_images"], counts["reference_images"]) == (source.num_images("train"), NUM_VALIDATION)
    retrieval, true = of_true["caption-retrieval"], of_true["caption-retrieval-true"]
    assert retrieval.settings["captions"] == 100
    assert retrieval.settings["accuracy_on_true_images"] == round(true.value, 3)


def test_what_is_recorded_is_recognised_by_its_conditions_and_network(
    of_true: dict[str, EvalRow], config: RunConfig
) -> None:
    task = task_of(config, NUM_VALIDATION)
    for name in ALL:
        for value, like in implementation_of(METRICS[name]).recorded_under(METRICS[name], task).items():
            row, metric = of_true[value], implementation_of(METRICS[name])
            assert row.num_samples == like.num_samples
            compared = {key: setting for key, setting in row.settings.items() if key not in metric.not_compared}
            assert compared == like.settings
            assert "features" in like.settings


def test_each_caption_is_compared_with_99_others_the_same_whoever_asks(source: Pixels) -> None:
    pool, again = CaptionPool(source, "held_out"), CaptionPool(source, "held_out")
    texts = source.captions("held_out", range(pool.num_rows))
    for row in range(pool.num_rows):
        compared = pool.compared(row)
        assert len(set(compared)) == 100
        assert compared == again.compared(row)
        same = [other for other in range(pool.num_rows) if texts[other] == texts[row]]
        assert {pool.compared(other)[0] for other in same} == {compared[0]}
    assert len({tuple(sorted(pool.compared(row))) for row in range(10)}) > 1
    seen = [number for row in range(pool.num_rows) for number in pool.compared(row)[1:]]
    assert len(set(seen)) == len(pool.captions)  # nothing is never a competitor


def test_captions_are_those_of_the_images_in_order_and_begin_anew(config: RunConfig, source: Pixels) -> None:
    captions = task_of(config, NUM_VALIDATION + 3).captions("validation")
    assert captions.rows[-4:] == [NUM_VALIDATION - 1, 0, 1, 2]
    assert captions.captions[:2] == source.captions("validation", [0, 1])
    features = captions.prompts(config)
    assert isinstance(features, tuple)
    torch.testing.assert_close(features[2][0], source.pooled_features("validation", [0])[0])
    batch = LabelledBatch("validation", captions.numbers[:1], torch.zeros(1, 3, 16, 16), [], [0], captions.texts[:1])
    assert batch.captions == captions.captions[:1]
