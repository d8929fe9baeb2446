"""Runs that are conditioned on classes read the images of the others, with labels in place of captions."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream, validation_set
from experiments.data.scenes.classes import CLASSES, class_name, class_of
from experiments.data.scenes.scene import draw_scenes
from experiments.data.sources.image_source import open_source
from experiments.errors import ConfigError


def labelled(*overrides: str) -> RunConfig:
    return load_config(["model.block=dit", "train.batch_images=32", "eval.images=64", *overrides])


def test_a_class_is_the_kind_and_the_look_of_the_first_object() -> None:
    scenes = draw_scenes(0, range(200), "train")
    for scene in scenes:
        first = scene.objects[0]
        assert class_name(class_of(scene)) == f"{scene.kind}: {first.color} {first.shape}"
    assert len(set(map(class_of, scenes))) > 80
    assert labelled().data.num_classes == len(CLASSES) == len(set(CLASSES)) == 384


def test_images_times_and_noise_are_those_of_a_run_with_captions() -> None:
    classes = TrainStream(labelled()).batch(32)
    captions = TrainStream(load_config(["train.batch_images=32"])).batch(32)
    for name in ("index_B", "pixels_BCHW", "noise_BCHW", "time_B"):
        assert torch.equal(getattr(classes, name), getattr(captions, name))
    assert classes.caption_BL is None
    assert captions.label_B is None


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_labels_are_those_of_the_scenes_and_dropped_ones_are_the_null_class(share: float) -> None:
    config = labelled(f"train.caption_dropout={share}", "train.batch_images=256")
    batch = TrainStream(config).batch(256)
    assert batch.label_B is not None
    assert batch.label_B.dtype == torch.int64
    wanted = torch.tensor([class_of(scene) for scene in draw_scenes(0, range(256, 512), "train")])
    dropped_B = batch.label_B == 384
    assert torch.equal(batch.label_B[~dropped_B], wanted[~dropped_B])
    assert float(dropped_B.float().mean()) == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)
    assert batch.caption is batch.label_B


def test_validation_never_drops_a_label() -> None:
    counts = Counter(label for batch in validation_set(labelled()) for label in batch.label_B.tolist())
    assert sum(counts.values()) == 64
    assert 384 not in counts


@pytest.mark.parametrize(("block", "name"), [("dit", "imagenet"), ("mmdit", "sd3")])
def test_a_data_set_without_images_says_so_before_training(block: str, name: str) -> None:
    config = load_config([f"model.block={block}", f"data={name}"])
    message = f"data.name={name} has no images: it describes what released weights were trained on."
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_source(config.data).check()
    with pytest.raises(ConfigError, match=re.escape("Name it with --vae")):
        open_source(config.data).decoder(None, torch.device("cpu"))
