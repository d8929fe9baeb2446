"""What a training run shows of itself, and that it costs the run nothing but time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.config.overrides import load_config
from experiments.data.loader import validation_set
from experiments.evaluation.sampling.generate import SamplerSettings, image_noise, sample, validation_captions
from experiments.evaluation.sampling.preview import PreviewMap, preview
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiT
from experiments.records.run_folder import RunDir
from experiments.training.loop import train

SETTINGS = (
    *("model=nano", "model.width=32", "model.num_layers=2", "train.images=32", "train.batch_images=8"),
    *("eval.every_images=16", "eval.images=8", "eval.sample_images=3", "eval.sample_steps=2"),
    *("log.every_images=8", "wandb.mode=disabled"),
)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in RunDir(folder).steps.read_text().splitlines()]


@pytest.mark.parametrize(("arm", "kinds"), [("expert_choice", {"images", "routing"}), ("dense", {"images"})])
def test_every_evaluation_leaves_a_grid_and_a_routing_map(arm: str, kinds: set[str], tmp_path: Path) -> None:
    config = load_config([*SETTINGS, f"routing={arm}"])
    train(config, RunDir(tmp_path / "shown"), ["test"], observers=[preview])
    train(config, RunDir(tmp_path / "plain"), ["test"])
    pictures = sorted(RunDir(tmp_path / "shown").samples.iterdir())
    assert {path.name for path in pictures} == {f"{kind}_{n:012d}.png" for kind in kinds for n in (16, 32)}
    for path in pictures:
        with Image.open(path) as picture:
            assert len(picture.convert("L").getcolors(maxcolors=2**24) or []) > 10
    assert losses(tmp_path / "shown") == losses(tmp_path / "plain")


def test_a_routing_map_is_of_the_caption_and_not_of_the_null_caption() -> None:
    """In the first step guidance has not moved the image yet, so it cannot change which experts the caption takes."""
    config = load_config([*SETTINGS, "routing=expert_choice"])
    torch.manual_seed(0)
    model = DiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    maps = []
    for scale in (1.0, 3.0):
        compute = PreviewMap(num_images=3)
        settings = SamplerSettings(num_steps=1, guidance=Guidance(scale))
        sample(model, validation_captions(config, 3), image_noise(config, range(3), seed=0), settings, compute.watch)
        maps.append(compute.maps())
    assert maps[0] is not None
    assert torch.equal(maps[0], maps[1])


def test_without_sample_images_there_are_none(tmp_path: Path) -> None:
    train(load_config([*SETTINGS, "eval.sample_images=0"]), RunDir(tmp_path), ["test"], observers=[preview])
    assert not RunDir(tmp_path).samples.exists()


def test_the_first_captions_are_those_of_the_validation_set() -> None:
    config = load_config([*SETTINGS, "eval.batch_images=3"])
    whole = torch.cat([batch.caption_BL for batch in validation_set(config)])
    for num_images in (1, 3, 5):
        assert torch.equal(validation_captions(config, num_images), whole[:num_images])


def test_noise_takes_seeds_of_any_size_and_neighbours_share_none() -> None:
    config = load_config(SETTINGS)
    noise = torch.cat([image_noise(config, [0, 1], seed) for seed in (0, 1, 2**40, 2**200)]).flatten(1)
    assert torch.pdist(noise).min() > 50  # of independent normals: sqrt(2 x 3072) = 78
