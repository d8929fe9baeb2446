import pytest
import torch

from experiments.config.overrides import load_config
from experiments.config.sampler_rows import SAMPLERS
from experiments.errors import ConfigError
from experiments.evaluation.sampling.generate import SamplerSettings, caption_ids, image_noise, sample
from experiments.evaluation.sampling.preview import PreviewMap, grid
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiT
from tests.flow_cases import CASES, LEARNED, named

SETTINGS = SamplerSettings(num_steps=3, guidance=Guidance(2.0))
CAPTIONS = ["a red circle", "two blue squares", "a circle left of a square"]


def noisy_model(*overrides):
    """A small model whose zero-initialised outputs are not zero, so that captions and noise matter."""
    config = load_config(["model=nano", "model.num_layers=2", *overrides])
    torch.manual_seed(0)
    model = DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return config, model


def images_of(config, model, numbers):
    captions = caption_ids(config, [CAPTIONS[number] for number in numbers])
    return sample(model, captions, image_noise(config, numbers, seed=7), SETTINGS)


def test_an_image_is_the_same_alone_and_in_a_batch():
    config, model = noisy_model("routing=expert_choice", "routing.group_images=1")
    together = images_of(config, model, [0, 1, 2])
    alone = images_of(config, model, [1])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_channels_that_leave_none_out_are_refused():
    config = load_config([])
    with pytest.raises(ConfigError, match=r"--guidance-channels 3 leaves none out: data.channels=3. Leave out"):
        SamplerSettings.asked(config, None, Guidance(2.0, channels=3), None, "euler")
    assert SamplerSettings.asked(config, None, Guidance(2.0, channels=2), None, "euler").guidance.channels == 2


def test_more_steps_than_noise_levels_are_refused():
    config = load_config(["flow.objective=ddpm"])
    with pytest.raises(ConfigError, match=r"--steps 1001 does not fit flow\.objective=ddpm, which has 1000 noise"):
        SamplerSettings.asked(config, 1001, Guidance(), None, "ddpm")
    for objective, steps in (("ddpm", 1000), ("rectified_flow", 1001), ("edm", 1001)):
        asked = SamplerSettings.asked(load_config([f"flow.objective={objective}"]), steps, Guidance(), None, "ddpm")
        assert asked.num_steps == steps


@pytest.mark.parametrize("case", [*CASES, LEARNED], ids=named)
def test_every_objective_is_sampled_with_every_sampler_and_an_image_does_not_depend_on_its_batch(case):
    config, model = noisy_model("routing=dense", *(f"flow.{key}={value}" for key, value in case.items()))
    for sampler in SAMPLERS:
        how = SamplerSettings(3, Guidance(2.0), sampler=sampler)
        three, one = (
            sample(model, caption_ids(config, [CAPTIONS[n] for n in numbers]), image_noise(config, numbers, 7), how)
            for numbers in ([0, 1, 2], [1])
        )
        assert three.shape == (3, 3, 32, 32)
        assert three.isfinite().all()
        torch.testing.assert_close(three[1:2], one, rtol=1e-2, atol=1e-2)  # large first steps magnify rounding
        assert three.std() > 0.01


def test_noise_belongs_to_the_number_of_the_image():
    config, _ = noisy_model("routing=dense")
    assert torch.equal(image_noise(config, [4, 2], seed=1)[1], image_noise(config, [2], seed=1)[0])
    assert not torch.equal(image_noise(config, [2], seed=1), image_noise(config, [2], seed=2))


def test_sampling_leaves_the_model_in_the_mode_it_had():
    config, model = noisy_model("routing=dense")
    for training in (True, False):
        model.train(training)
        images_of(config, model, [0])
        assert model.training is training


def test_words_outside_the_vocabulary_are_named():
    with pytest.raises(ConfigError, match="zebra"):
        caption_ids(load_config(["model=nano"]), ["a zebra"])


def test_the_compute_map_is_the_mean_number_of_experts_of_a_token():
    config, model = noisy_model("routing=expert_choice", "routing.num_experts=4", "routing.capacity_factor=2")
    compute = PreviewMap(num_images=2)
    captions = caption_ids(config, CAPTIONS[:2])
    sample(model, captions, image_noise(config, [0, 1], seed=0), SETTINGS, compute.watch)
    maps = compute.maps()
    assert maps.shape == (2, 8, 8)
    torch.testing.assert_close(maps.mean(dim=(1, 2)), torch.full((2,), 2.0))
    assert maps.std() > 0


def test_a_dense_model_has_no_compute_map():
    config, model = noisy_model("routing=dense")
    compute = PreviewMap(num_images=1)
    sample(model, caption_ids(config, CAPTIONS[:1]), image_noise(config, [0], seed=0), SETTINGS, compute.watch)
    assert compute.maps() is None


def test_a_grid_shows_every_image_at_its_place():
    black, white = torch.full((3, 4, 4), -1.0), torch.full((3, 4, 4), 1.0)
    picture = grid(torch.stack([white, black, black]), columns=2, scale=2)
    assert picture.size == (24, 24)
    assert [picture.getpixel(at)[0] for at in ((6, 6), (18, 6), (6, 18), (18, 18))] == [255, 0, 0, 255]
