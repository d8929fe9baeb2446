"""The distance within kinds of scenes sees what the distance over all images cannot: images of the wrong kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ecdit_cli.app import run
from experiments.config.metrics import METRICS
from experiments.config.overrides import load_config
from experiments.data.scenes.classes import class_of
from experiments.data.scenes.features import weights_digest
from experiments.data.scenes.scene import KINDS, Scene, draw_scenes, render_scenes
from experiments.errors import ConfigError
from experiments.evaluation.metrics.frechet import REFERENCE_IMAGES, FrechetShapes
from experiments.evaluation.metrics.intra_frechet import INTRA_DISTANCE, IntraFrechetShapes
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.sampling.settings import training_conditions
from experiments.records.record_types import EvalRow
from tests.training_runs import random_run_folder

NUM_IMAGES = 600
BASE = EvalRow(images_seen=1, metric="", value=0.0, num_samples=NUM_IMAGES, seed=0, weights="ema", settings={})
SCENES = draw_scenes(0, range(NUM_IMAGES), "validation")
RENDERS = torch.from_numpy(render_scenes(SCENES))


def task(*overrides: str, num_images: int = NUM_IMAGES) -> MetricTask:
    config = load_config(list(overrides))
    return MetricTask(config, replace(training_conditions(config, "fp32"), num_images=num_images), BASE)


def measured(metric: SampledMetric, scenes: list[Scene]) -> list[EvalRow]:
    """The rows of the true renders, which are said to be of `scenes`."""
    for first in range(0, NUM_IMAGES, 150):
        here = slice(first, first + 150)
        metric.add(LabelledBatch("validation", range(first, first + 150), RENDERS[here], scenes[here]))
    return metric.rows(BASE)


def test_true_renders_under_the_wrong_kind_are_seen_within_kinds_alone() -> None:
    other = [SCENES[place] for place in np.random.default_rng(0).permutation(NUM_IMAGES)]
    right, wrong = (measured(IntraFrechetShapes(task()), scenes)[0].value for scenes in (SCENES, other))
    assert wrong > 2 * right
    over_all = [measured(FrechetShapes(task()), scenes)[0].value for scenes in (SCENES, other)]
    assert over_all[0] == pytest.approx(over_all[1])


def test_the_value_is_the_mean_over_kinds_and_all_images_count() -> None:
    whole, *parts = measured(IntraFrechetShapes(task()), SCENES)
    assert [row.metric for row in parts] == [f"{INTRA_DISTANCE}/{kind}" for kind in KINDS]
    assert whole.value == pytest.approx(sum(row.value for row in parts) / 6)
    assert whole.num_samples == sum(row.num_samples for row in parts) == NUM_IMAGES
    assert [row.num_samples for row in parts] == [sum(scene.kind == kind for scene in SCENES) for kind in KINDS]


def test_its_network_and_the_number_of_true_images_decide_what_is_recorded() -> None:
    like = IntraFrechetShapes.recorded_under(METRICS[INTRA_DISTANCE], task())[INTRA_DISTANCE]
    assert like.settings == {"features": weights_digest(), "reference_images": REFERENCE_IMAGES}
    assert like.num_samples == NUM_IMAGES


def test_too_few_images_of_a_kind_are_one_line_before_sampling(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        IntraFrechetShapes(task(num_images=395))
    assert "needs more than its 64 features. Ask for more: --images 790." in str(caught.value)
    folder = random_run_folder(tmp_path / "run", "model.block=dit").path
    assert run(["evaluate", str(folder), "--metrics", "intra-frechet-shapes", "--images", "100"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--images 100 is too few: intra-frechet-shapes needs at least 390 images." in error
    assert error.endswith("Ask for 390 or more.")


def test_a_run_of_classes_is_asked_for_the_classes_of_the_scenes_and_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = task("model.block=dit").captions("validation")
    assert asked.prompts(load_config(["model.block=dit"])) == [class_of(scene) for scene in SCENES]
    folder = random_run_folder(tmp_path / "run", "model.block=dit", "model.num_layers=1", "routing=dense").path
    words = ["--metrics", "intra-frechet-shapes,frechet-shapes", "--images", "512", "--steps", "1", "--guidance", "1"]
    assert run(["evaluate", str(folder), *words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert INTRA_DISTANCE in json.dumps(rows)
