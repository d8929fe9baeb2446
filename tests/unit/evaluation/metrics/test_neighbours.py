"""Precision, recall and memorisation against hand-made points, and on renders of which the answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.config.metrics import METRICS
from experiments.config.overrides import load_config
from experiments.data.scenes.scene import draw_scenes, render_scenes
from experiments.evaluation.metrics.neighbours import (
    NEIGHBOURS,
    Memorisation,
    PrecisionRecall,
    ball_radii,
    copied,
    nearest_distances,
    share_inside,
)
from experiments.evaluation.metrics.sampled_metric import (
    LabelledBatch,
    MetricTask,
    implementation_of,
    with_settings,
)
from experiments.evaluation.metrics.true_images import REFERENCE_FIRST
from experiments.evaluation.sampling.settings import training_conditions
from experiments.records.record_types import EvalRow, ParentRecord

BASE = EvalRow(images_seen=512, metric="", value=0.0, num_samples=1, seed=3, weights="ema", settings={"guidance": 2.0})


def share_among(points, others):
    return share_inside(points, others, ball_radii(others))


def measured(metric, images_BCHW, parent=None):
    config = load_config(["model=nano", "data.image_size=16", "eval.metric_images=8"])
    run = SimpleNamespace(record=SimpleNamespace(parent=parent))
    task = MetricTask(config, training_conditions(config, "ema"), BASE, run=run)
    one = metric(task)
    for start in range(0, len(images_BCHW), 50):
        part = images_BCHW[start : start + 50]
        one.add(LabelledBatch("validation", range(start, start + len(part)), part, []))
    (row,) = (row for row in METRICS.values() if row.implementation and implementation_of(row) is metric)
    return {row.metric: row for row in one.rows(with_settings(BASE, metric.own_settings(row, task)))}


def renders(split, first, num):
    return torch.from_numpy(render_scenes(draw_scenes(0, range(first, first + num), split, 16)))


def test_a_point_is_among_others_where_the_ball_of_one_of_them_reaches_it():
    others = torch.tensor([[0.0], [1.0], [2.0], [4.0], [100.0]])
    # The balls reach the third nearest neighbour: radii 4, 3, 2, 4 and 99.
    assert share_among(torch.tensor([[-4.0]]), others) == 1
    assert share_among(torch.tensor([[-4.1]]), others) == 0
    assert share_among(torch.tensor([[9.0], [199.0], [199.5], [-5.0]]), others) == 0.5


def test_equal_sets_are_among_each_other_and_far_ones_are_not():
    points = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert share_among(points, points) == 1
    assert share_among(points, points + 1000) == 0


def test_neighbours_are_those_of_a_plain_loop():
    generator = np.random.default_rng(0)
    points, others = generator.normal(size=(30, 4)), generator.normal(size=(25, 4))
    inside = 0
    for point in points:
        radii = [sorted(np.linalg.norm(others - other, axis=1))[NEIGHBOURS] for other in others]
        inside += any(np.linalg.norm(point - other) <= radius for other, radius in zip(others, radii, strict=True))
    assert share_among(torch.from_numpy(points), torch.from_numpy(others)) == pytest.approx(inside / 30)
    nearest = [min(np.linalg.norm(others - point, axis=1)) for point in points]
    np.testing.assert_allclose(nearest_distances(torch.from_numpy(points), torch.from_numpy(others)), nearest)


def test_only_some_of_the_distances_are_in_memory_at_a_time(monkeypatch):
    """All distances among the 50,000 images that FID usually takes would fill 20 GB."""
    points, others = torch.randn(1000, 4), torch.randn(900, 4)
    whole = torch.cdist(points.double(), others.double())
    radius = ball_radii(others)
    sizes, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda first, second: sizes.append(len(first)) or cdist(first, second))
    torch.testing.assert_close(nearest_distances(points, others), whole.amin(dim=1))
    assert share_inside(points, others, radius) == pytest.approx((whole <= radius).any(dim=1).double().mean().item())
    torch.testing.assert_close(ball_radii(others), radius)
    assert sum(sizes) == 2 * len(points) + len(others)
    assert max(sizes) < len(others) / 2


def test_a_copy_is_nearer_than_all_but_one_in_a_hundred_held_out_images():
    held_out = torch.arange(1, 102, dtype=torch.float64)
    assert copied(torch.tensor([0.0, 1.5, 1.99, 2.01, 50.0], dtype=torch.float64), held_out) == 3


def test_true_images_have_high_precision_and_recall_and_one_kind_of_them_no_recall():
    true = measured(PrecisionRecall, renders("validation", 5000, 200))
    assert true["precision-shapes"].value > 0.8
    assert true["recall-shapes"].value > 0.8
    same = measured(PrecisionRecall, renders("validation", 5000, 1).repeat(200, 1, 1, 1))
    assert same["precision-shapes"].value in (0, 1)
    assert same["recall-shapes"].value < 0.01


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.01])
def test_noise_and_grey_frames_are_not_among_true_images_however_few_they_are(spread):
    noise = spread * torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert [row.value for row in measured(PrecisionRecall, noise).values()] == [0, 0]


def test_the_reference_itself_has_full_precision_and_its_interval_is_wilsons():
    row = measured(PrecisionRecall, renders("validation", REFERENCE_FIRST, 100))["precision-shapes"]
    assert (row.value, row.num_samples) == (1, 100)
    assert row.interval_low == pytest.approx(0.963, abs=1e-3)


def test_images_of_training_are_found_to_be_copies_and_held_out_ones_are_not():
    copies = measured(Memorisation, renders("train", 0, 100))
    assert copies["nearest-training-distance"].value == pytest.approx(0, abs=1e-4)
    assert copies["copied-share"].value == 1
    assert copies["copied-share"].settings["training_images"] == 512
    fresh = measured(Memorisation, renders("validation", 9000, 300))
    held_out = fresh["nearest-training-distance-held-out"]
    assert held_out.interval_low < fresh["nearest-training-distance"].value < held_out.interval_high
    assert fresh["copied-share"].value < 0.05


def test_images_that_training_has_not_seen_yet_are_no_copies():
    later = measured(Memorisation, renders("train", 512, 100))
    assert later["copied-share"].value < 0.1


@pytest.mark.parametrize(("fingerprint", "num_shown"), [("f" * 16, 640), (None, 512)])
def test_images_that_first_weights_were_trained_on_are_training_images(fingerprint, num_shown):
    """Those of a parent that is a trunk are the run's own, of which it has seen as many as it says."""
    parent = ParentRecord(name="parent", config_id="0" * 10, images=640, fingerprint=fingerprint)
    later = measured(Memorisation, renders("train", 512, 100), parent)["copied-share"]
    assert later.settings["training_images"] == num_shown
    assert later.value == pytest.approx(1 if num_shown == 640 else 0, abs=0.1)
