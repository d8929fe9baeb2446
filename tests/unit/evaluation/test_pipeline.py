"""`Pipeline`: the images of `ecdit sample`, for every objective and sampler, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.config.objectives import OBJECTIVES
from experiments.config.sampler_rows import SAMPLERS
from experiments.errors import ConfigError
from experiments.evaluation.exchange.exported_weights import export_weights
from experiments.evaluation.pipeline import Pipeline
from experiments.evaluation.sampling.batches import as_pixels, sampled_batches
from experiments.evaluation.sampling.generate import SamplerSettings, image_noise
from experiments.evaluation.sampling.load_run import load_run
from experiments.evaluation.sampling.settings import Conditions
from experiments.flow.samplers import Guidance
from experiments.records.run_folder import RunDir
from tests.training_runs import random_run_folder

PROMPTS = ["a red circle", "two green hearts", "a blue square"]
SMALL = ("data.image_size=16",)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(tmp_path_factory.mktemp("pipeline") / "run", "routing=expert_choice", *SMALL)


@pytest.fixture(scope="module")
def pipe(run: RunDir) -> Pipeline:
    return Pipeline.from_pretrained(run.path)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_noise_makes_the_images_of_the_command(objective: str, sampler: str, tmp_path: Path) -> None:
    folder = random_run_folder(tmp_path / "run", f"flow.objective={objective}", *SMALL)
    loaded = load_run(folder, "ema", pytest.fail)
    settings = SamplerSettings(3, Guidance(2.5), loaded.config.flow.time_shift, sampler)
    conditions = Conditions(3, 2, 11, "ema", loaded.precision, settings)
    expected = torch.cat([b.images_BCHW for b in sampled_batches(loaded.model, loaded.config, PROMPTS, conditions)])
    pipe = Pipeline.from_pretrained(folder.path)
    how: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.5, "sampler": sampler, "batch_images": 2}
    for noise in (
        {"generator": pipe.numbered_generators(3, seed=11)},
        {"latents": image_noise(loaded.config, range(3), seed=11)},
    ):
        images = pipe(PROMPTS, **how, **noise).images
        assert np.array_equal(np.stack(images), as_pixels(expected).numpy())


def test_a_run_and_its_export_make_the_same_images(run: RunDir, pipe: Pipeline, tmp_path: Path) -> None:
    for weights in ("ema", "raw"):
        out = tmp_path / weights
        export_weights(run, out, weights, "fp32", 2**30, pytest.fail)
        exported = Pipeline.from_pretrained(out)
        trained = Pipeline.from_pretrained(run.path, weights)
        images = [each("a circle", generator=seeded(3), output_type="pt").images for each in (exported, trained)]
        assert torch.equal(*images)
        assert exported.run.weights == weights


def test_what_is_not_said_is_as_the_run_samples(pipe: Pipeline) -> None:
    own = pipe.config.eval
    said = pipe(
        PROMPTS[0], num_inference_steps=own.sample_steps, guidance_scale=own.guidance, generator=seeded(1)
    ).images  # fmt: skip
    assert np.array_equal(said[0], pipe(PROMPTS[0], generator=seeded(1)).images[0])


def test_a_generator_is_drawn_from_as_in_diffusers(pipe: Pipeline) -> None:
    """One generator gives all images their noise in one draw, and the global one is used where there is none."""
    noise = torch.randn(2, 3, 16, 16, generator=seeded(5))
    of_noise = pipe(PROMPTS[:2], latents=noise, output_type="pt").images
    assert torch.equal(pipe(PROMPTS[:2], generator=seeded(5), output_type="pt").images, of_noise)
    torch.manual_seed(5)
    assert torch.equal(pipe(PROMPTS[:2], output_type="pt").images, of_noise)
    generator = seeded(5)
    first, second = (pipe(PROMPTS[0], generator=generator, output_type="pt").images for _ in range(2))
    assert not torch.equal(first, second)


def test_images_of_a_prompt_follow_each_other(pipe: Pipeline) -> None:
    four = pipe(
        PROMPTS[:2], num_images_per_prompt=2, generator=pipe.numbered_generators(4), output_type="pt"
    ).images  # fmt: skip
    alone = pipe(PROMPTS[1], generator=pipe.numbered_generators(3)[2:], output_type="pt").images
    torch.testing.assert_close(four[2:3], alone, atol=1e-5, rtol=1e-5)


def test_the_kinds_of_output_hold_the_same_pixels(pipe: Pipeline) -> None:
    pil, array, tensor = (
        pipe(PROMPTS[0], generator=seeded(2), output_type=kind).images for kind in ("pil", "np", "pt")
    )
    assert isinstance(pil[0], Image.Image)
    assert (pil[0].size, pil[0].mode) == ((16, 16), "RGB")
    assert (array.shape, array.dtype, tensor.shape) == ((1, 16, 16, 3), np.float32, (1, 3, 16, 16))
    assert 0 <= array.min() < array.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.abs(np.asarray(pil[0]) - 255 * array[0]).max() <= 0.5 + 1e-3


def test_a_compute_map_counts_the_experts_of_every_token(pipe: Pipeline) -> None:
    made = pipe(PROMPTS, num_inference_steps=2, compute_map=True, generator=seeded(4))
    assert made.compute_map is not None
    assert made.compute_map.captions == tuple(PROMPTS)
    assert np.array_equal(made.compute_map.images_BHWC, np.stack(made.images))
    capacity = pipe.config.routing.capacity_factor
    assert made.compute_map.mean_BT.mean(axis=1) == pytest.approx([capacity] * 3)
    assert pipe(PROMPTS[0]).compute_map is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"negative_prompt": "a square"}, "negative_prompt is not supported: "),
        ({"num_inference_steps": 0}, r"num_inference_steps=0 is out of range\. It is a whole number of at least 1\."),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5 is out of range"),
        ({"guidance_scale": -1.0}, r"guidance_scale=-1\.0 is out of range"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan is out of range"),
        ({"sampler": "eular"}, r"sampler='eular' is unknown\. Did you mean 'euler'\?"),
        ({"output_type": "jpg"}, r"output_type='jpg' is unknown\. Choose from: np, pil, pt\."),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0 is out of range"),
        ({"generator": [torch.Generator()]}, r"generator is a list of 1 for 2 images\. Give one for each"),
        ({"latents": torch.zeros(1, 3, 16, 16)}, r"latents has the shape \(1, 3, 16, 16\)\. These images need \(2, 3,"),
        ({"prompt": []}, r"prompt=\[\] is neither a text nor a list of such"),
        ({"prompt": 3}, "prompt=3 is neither a text nor a list of such"),
        ({"prompt": ["a purple circle", "a circle"]}, "the vocabulary of the data set lacks the words 'purple'"),
    ],
)
def test_a_mistake_is_named(asked: dict[str, Any], message: str, pipe: Pipeline) -> None:
    given = {"prompt": PROMPTS[:2], **asked}
    with pytest.raises(ConfigError, match=message):
        pipe(**given)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weights": "emma"}, r"weights='emma' is unknown\. Did you mean 'ema'\?"),
        ({"precision": "fp16"}, r"precision='fp16' is unknown\. Did you mean "),
        ({"ema_width": 0.3}, r"ema_width=0\.3 is out of range\. A width is above 0 and at most 0\.288\."),
        ({"ema_width": 0.0}, "ema_width=0.0 is out of range"),
        ({"ema_width": float("nan")}, "ema_width=nan is out of range"),
    ],
)
def test_a_mistake_in_what_is_loaded_is_named(asked: dict[str, Any], message: str, run: RunDir) -> None:
    with pytest.raises(ConfigError, match=message):
        Pipeline.from_pretrained(run.path, **asked)


def test_more_steps_than_noise_levels_are_refused_in_the_words_of_the_call(tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(random_run_folder(tmp_path / "run", "flow.objective=ddpm", *SMALL).path)
    with pytest.raises(ConfigError) as error:
        pipe(PROMPTS, num_inference_steps=1001)
    assert str(error.value) == (
        "num_inference_steps=1001 does not fit flow.objective=ddpm, which has 1000 noise levels. "
        "Use num_inference_steps=1000, or fewer."
    )


def test_a_dense_model_has_no_compute_map(tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(random_run_folder(tmp_path / "run", "routing=dense", *SMALL).path)
    with pytest.raises(ConfigError, match=r"is a dense model, in which .* Leave out the compute map\."):
        pipe("a circle", compute_map=True)


def test_prompts_of_a_run_on_latents_are_stored(latent_set: Path, tmp_path: Path) -> None:
    folder = random_run_folder(tmp_path / "run", "data.name=latents", f"data.path={latent_set}")
    with pytest.raises(ConfigError, match=r"was trained on latents, .* Sample it with: ecdit sample"):
        Pipeline.from_pretrained(folder.path)


def test_a_run_of_classes_is_asked_for_their_numbers(tmp_path: Path) -> None:
    folder = random_run_folder(tmp_path / "run", "model.block=dit", *SMALL)
    pipe = Pipeline.from_pretrained(folder.path)
    how: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt", "generator": seeded(0)}
    one, two = pipe([3, 380], **how).images
    assert not torch.equal(one, two)
    with pytest.raises(ConfigError, match="prompt='a red circle' is neither the number of a class nor a list of such"):
        pipe("a red circle")
    with pytest.raises(ConfigError, match="384"):
        pipe(384)
