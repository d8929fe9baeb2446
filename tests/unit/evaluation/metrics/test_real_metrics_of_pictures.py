"""FID and CLIP score measure runs on prepared pictures: with true pictures and captions of the set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments.data.sources.pixels import Pixels
from experiments.errors import ConfigError
from experiments.evaluation.metrics.clip_score import ClipBackbone
from experiments.evaluation.metrics.fid import InceptionBackbone
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.evaluation.sampling.load_run import load_run
from experiments.evaluation.sampling.settings import Conditions
from experiments.evaluation.score import RunScorer
from experiments.flow.samplers import Guidance
from tests.picture_sets import prepared_pictures
from tests.real_images import need_static_extra
from tests.training_runs import random_run_folder

need_static_extra()
pytest.importorskip("torchmetrics", reason="torchmetrics is of the extra ecdit[metrics]")
NUM_VALIDATION = 24


class ChannelMeans(nn.Module):
    """Three features in the place of Inception's 2048."""

    num_features = 3

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return pixels_BCHW.float().mean((2, 3))


def test_fid_compares_with_the_validation_split_of_the_set(tmp_path: Path) -> None:
    folder = prepared_pictures(tmp_path / "set", 60, held_out=False, validation_images=NUM_VALIDATION)
    run = load_run(random_run_folder(tmp_path / "run", f"data.path={folder}", "train.batch_images=8"), "ema", print)
    how = Conditions(32, 16, 0, "ema", "fp32", SamplerSettings(1, Guidance(1.0)))
    backbone = InceptionBackbone(ChannelMeans(), {"inception_sha256": "0" * 12})
    (row,) = RunScorer(run, ["fid"], how, {"fid": backbone}).measure()
    assert (row.num_samples, row.settings["reference_images"]) == (32, NUM_VALIDATION)
    assert row.value > 0
    assert RunScorer(run, ["fid"], how, {"fid": backbone}).missing == []


def test_a_set_with_one_validation_image_is_one_line_before_anything_is_sampled(tmp_path: Path) -> None:
    folder = prepared_pictures(tmp_path / "set", 20, held_out=False, validation_images=1)
    run = load_run(random_run_folder(tmp_path / "run", f"data.path={folder}", "train.batch_images=8"), "ema", print)
    how = Conditions(32, 16, 0, "ema", "fp32", SamplerSettings(1, Guidance(1.0)))
    with pytest.raises(ConfigError, match=r"has 1 validation image: FID needs at least 2\. Prepare it with more --val"):
        RunScorer(run, ["fid"], how, {"fid": InceptionBackbone(ChannelMeans())}).measure()


def test_clip_score_reads_the_captions_of_the_set(tmp_path: Path) -> None:
    """Its preprocessing shows which captions it was given."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = None

        def get_image_features(self, pixel_values: Tensor) -> Tensor:
            return torch.ones(len(pixel_values), 2)

        def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return torch.ones(len(input_ids), 2)

    read: list[str] = []

    def inputs(**given: object) -> dict[str, Tensor]:
        if "images" in given:
            return {"pixel_values": torch.ones(1, 3, 4, 4)}
        assert isinstance(given["text"], list)
        read.extend(given["text"])
        return {"input_ids": torch.ones(1, 2, dtype=torch.int64), "attention_mask": torch.ones(1, 2)}

    folder = prepared_pictures(tmp_path / "set", 60, held_out=False, validation_images=NUM_VALIDATION)
    run = load_run(random_run_folder(tmp_path / "run", f"data.path={folder}", "train.batch_images=8"), "ema", print)
    how = Conditions(4, 4, 0, "ema", "fp32", SamplerSettings(1, Guidance(1.0)))
    (row,) = RunScorer(run, ["clip-score"], how, {"clip-score": ClipBackbone(Constant(), inputs)}).measure()
    assert row.num_samples == 4
    assert read == Pixels(run.config.data).captions("validation", range(4))
