"""Image i is a function of (seed, i, caption): not of the batch, nor of which other images are made."""

import pytest
import torch

from experiments.config.overrides import load_config
from experiments.config.sampler_rows import SAMPLERS
from experiments.evaluation.sampling.batches import as_pixels, num_calls, sampled_batches
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.evaluation.sampling.settings import Conditions, depends_on_batch
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiT

CAPTIONS = ["a red circle", "two blue squares", "a circle left of a square", "a heart", "a black moon and a green bar"]


def conditions(batch_images: int, sampler: str = "euler", **guidance: float) -> Conditions:
    settings = SamplerSettings(3, Guidance(**{"scale": 2.0, **guidance}), sampler=sampler)
    return Conditions(len(CAPTIONS), batch_images, 7, "ema", "fp32", settings)


@pytest.fixture(scope="module")
def config_and_model():
    config = load_config(["model=nano", "model.num_layers=2", "routing=expert_choice"])
    torch.manual_seed(0)
    model = DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return config, model


def images(config_and_model, batch_images, **options):
    config, model = config_and_model
    batches = sampled_batches(model, config, CAPTIONS, conditions(batch_images), **options)
    return torch.cat([batch.images_BCHW for batch in batches])


@pytest.mark.parametrize("batch_images", [1, 2, 4, 5])
def test_images_are_the_same_whatever_the_size_of_the_batches(config_and_model, batch_images):
    torch.testing.assert_close(
        images(config_and_model, batch_images), images(config_and_model, 3), rtol=1e-4, atol=1e-5
    )


def test_an_image_is_found_again_by_its_number(config_and_model):
    config, model = config_and_model
    whole = images(config_and_model, 5)
    (some,) = sampled_batches(model, config, CAPTIONS[1:3], conditions(2), numbers=range(1, 3))
    assert some.numbers == range(1, 3)
    torch.testing.assert_close(some.images_BCHW, whole[1:3], rtol=1e-4, atol=1e-5)
    (others,) = sampled_batches(model, config, CAPTIONS[1:3], conditions(2), numbers=range(10, 12))
    assert not torch.allclose(others.images_BCHW, whole[1:3], atol=1e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_number_of_calls_is_known_beforehand(config_and_model, sampler):
    config, model = config_and_model
    calls = []
    how = conditions(2, sampler)
    list(sampled_batches(model, config, CAPTIONS, how, on_call=lambda: calls.append(1)))
    assert len(calls) == num_calls(len(CAPTIONS), how, config)


def test_a_watcher_hears_where_batches_begin_and_sees_every_call(config_and_model):
    seen = []

    class Watcher:
        def begin_batch(self, num_images, first_number):
            seen.append((num_images, first_number))

        def watch(self, time, output):
            seen.append(round(time, 3))

    images(config_and_model, 3, watcher=Watcher())
    assert seen == [(3, 0), 1.0, 0.667, 0.333, (2, 3), 1.0, 0.667, 0.333]


def test_the_batch_is_a_condition_only_where_routing_depends_on_it():
    alone, grouped, dense = (
        load_config(["routing=expert_choice", "routing.group_images=1"]),
        load_config(["routing=token_choice"]),
        load_config(["routing=dense"]),
    )
    assert [depends_on_batch(config) for config in (alone, grouped, dense)] == [False, True, False]
    assert "batch_images" not in conditions(4).settings(alone)
    assert conditions(4).settings(grouped)["batch_images"] == 4


def test_conditions_are_written_whole():
    config = load_config(["routing=dense"])
    row = conditions(2, scale=4.0, start=0.1, stop=0.9).row(config, 640)
    assert row.settings == {
        "guidance": 4.0, "guidance_start": 0.1, "guidance_stop": 0.9, "steps": 3, "sampler": "euler", "shift": 1.0,
        "precision": "fp32",
    }  # fmt: skip
    some = conditions(2, scale=4.0, channels=2).row(config, 640)
    assert some.settings["guidance_channels"] == 2
    assert (row.images_seen, row.num_samples, row.seed, row.weights) == (640, len(CAPTIONS), 7, "ema")


def test_pixels_are_rounded_and_cover_the_range():
    image = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert as_pixels(image)[0, :, :, 0].tolist() == [[0, 128], [255, 255]]
