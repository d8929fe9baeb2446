"""`Pipeline` samples images from Python, with the calling convention of diffusers, from a run or its exported weights.

    pipe = Pipeline.from_pretrained("out/weights")
    image = pipe("a red circle", num_inference_steps=50, guidance_scale=5.0).images[0]

With the same noise it makes the images that `ecdit sample` makes. What is None is as the run samples while it trains.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from experiments.config.caption_kinds import FeatureCaptions
from experiments.config.data_sets import captions_of, data_set_of
from experiments.config.sampler_rows import SAMPLERS, require_steps
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError, did_you_mean
from experiments.evaluation.inference.mapped_samples import sample_captions
from experiments.evaluation.sampling.batches import as_pixels
from experiments.evaluation.sampling.generate import SamplerSettings, image_generator, noise_shape
from experiments.evaluation.sampling.load_run import LoadedRun, load_run
from experiments.evaluation.sampling.settings import Conditions
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiT
from experiments.records.compute_map import ComputeMap
from experiments.records.record_types import Precision, Weights
from experiments.records.run_folder import RunDir
from experiments.text import shortened
from experiments.training.power_profiles import WIDEST

Generators = torch.Generator | Sequence[torch.Generator]
OutputType = Literal["pil", "np", "pt"]
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)


@dataclass(frozen=True)
class PipelineOutput:
    """The images of one call.

    They are a list of PIL images (`pil`), a NumPy array [B, H, W, C] (`np`) or a tensor [B, C, H, W] (`pt`); the last
    two are float32 from 0 to 1. `compute_map` is there where it was asked for.
    """

    images: Any
    compute_map: ComputeMap | None = None


class Pipeline:
    """Holds a trained model, and samples images of prompts when it is called."""

    def __init__(self, run: LoadedRun) -> None:
        """Takes a loaded run. Raises `ConfigError` where it was trained on latents, or on features of captions."""
        if not data_set_of(run.config).has_pixels:
            raise ConfigError(
                f"{run.run_dir.path} was trained on latents, of which a VAE makes images.",
                "Sample it with: ecdit sample",
            )
        if isinstance(captions_of(run.config), FeatureCaptions):
            raise ConfigError(
                f"{run.run_dir.path} was trained on features of captions.", "Sample it with: ecdit sample"
            )
        self.run = run

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        weights: Weights | None = None,
        precision: Precision | None = None,
        ema_width: float | None = None,
    ) -> Pipeline:
        """Loads the newest checkpoint of a run, or a folder of `ecdit export-weights`, to the current device.

        `weights` of a run are its moving average unless it says `raw`; `precision` is by default the one of training or
        of the export. Raises an `EcditError` for a folder that is neither, or that is damaged, and for a mistake in
        what is asked.
        """
        for name, value, choices in (("weights", weights, Weights), ("precision", precision, Precision)):
            if value is not None:
                _require_choice(name, value, get_args(choices))
        if ema_width is not None and not 0 < ema_width <= WIDEST:
            widest = f"{math.floor(1000 * WIDEST) / 1000:g}"
            raise ConfigError(f"ema_width={ema_width} is out of range.", f"A width is above 0 and at most {widest}.")
        return cls(load_run(RunDir(Path(folder)), weights, _warn, precision, ema_width))

    @property
    def model(self) -> DiT:
        """Returns the network."""
        return self.run.model

    @property
    def config(self) -> RunConfig:
        """Returns the settings with which the network was trained."""
        return self.run.config

    def numbered_generators(self, num_images: int, seed: int | None = None) -> list[torch.Generator]:
        """Returns the generators with which images 0, 1, ... are those of `ecdit sample --seed SEED`."""
        own = self.config.data.seed if seed is None else seed
        return [image_generator(own, number) for number in range(num_images)]

    def __call__(
        self,
        prompt: str | int | Sequence[str] | Sequence[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: None = None,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        sampler: str = "euler",
        batch_images: int = 16,
        output_type: OutputType = "pil",
        compute_map: bool = False,
    ) -> PipelineOutput:
        """Samples `num_images_per_prompt` images of each prompt, those of one prompt after each other.

        A prompt is a caption, or the number of a class where the run is conditioned on classes.
        One `generator` draws the noise of all images, and a list of them that of one image each; `latents` is the noise
        itself, [B, C, H, W]. A `guidance_scale` of 1 is no guidance. `compute_map` also records how many experts
        processed each token, for `analysis.figures.compute_map.draw_compute_map`. Raises `ConfigError` for a mistake
        in what is asked, before anything is sampled, and `RunFailedError` where an image is not finite.
        """
        if negative_prompt is not None:
            raise ConfigError(
                "negative_prompt is not supported: guidance goes away from the empty caption.", "Leave it out."
            )
        _require_choice("output_type", output_type, OUTPUT_TYPES)
        prompts = _prompts(prompt, self.config.data.num_classes is not None)
        for name, value in (("num_images_per_prompt", num_images_per_prompt), ("batch_images", batch_images)):
            _require_count(name, value)
        texts: Any = [each for each in prompts for _ in range(num_images_per_prompt)]
        settings = self._sampler_settings(num_inference_steps, guidance_scale, sampler)
        noise_BCHW = self._noise(len(texts), generator, latents)
        run = self.run
        conditions = Conditions(len(texts), batch_images, 0, run.weights, run.precision, settings, run.ema_width)
        made = sample_captions(run, texts, conditions, compute_map, noise_BCHW=noise_BCHW)
        return PipelineOutput(_as_output(made.images_BCHW, output_type), made.compute_map)

    def _sampler_settings(self, steps: int | None, scale: float | None, sampler: str) -> SamplerSettings:
        own = SamplerSettings.of(self.config)
        if steps is not None:
            _require_count("num_inference_steps", steps)
            require_steps(steps, self.config.flow.objective, "num_inference_steps=")
        if scale is not None and not 0 <= scale < math.inf:
            raise ConfigError(f"guidance_scale={scale} is out of range.", "It is at least 0; 1 is no guidance.")
        _require_choice("sampler", sampler, SAMPLERS)
        guidance = own.guidance if scale is None else Guidance(scale)
        return SamplerSettings.asked(self.config, steps, guidance, None, sampler)

    def _noise(self, num_images: int, generator: Generators | None, latents: Tensor | None) -> Tensor:
        """Returns standard normal noise [B, C, H, W] in float32."""
        shape = (num_images, *noise_shape(self.config))
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise ConfigError(f"latents has the shape {tuple(latents.shape)}.", f"These images need {shape}.")
            return latents.float()
        if generator is None or isinstance(generator, torch.Generator):
            return torch.randn(shape, generator=generator, device=None if generator is None else generator.device)
        if len(generator) != num_images:
            raise ConfigError(
                f"generator is a list of {len(generator)} for {num_images} images.",
                "Give one for each, or a single one.",
            )
        return torch.stack([torch.randn(shape[1:], generator=each, device=each.device).cpu() for each in generator])


def _prompts(prompt: Any, of_classes: bool) -> list[Any]:
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not prompts or not all(type(each) is (int if of_classes else str) for each in prompts):
        what, example = ("the number of a class", "3") if of_classes else ("a text", "'a circle'")
        raise ConfigError(
            f"prompt={shortened(repr(prompt), 100)} is neither {what} nor a list of such.",
            f"Write for example {example}.",
        )
    return prompts


def _require_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value} is out of range.", "It is a whole number of at least 1.")


def _require_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown.", did_you_mean(str(value), choices))


def _as_output(images_BCHW: Tensor, output_type: OutputType) -> Any:
    """Returns images of [-1, 1] as `PipelineOutput` describes them."""
    if output_type == "pil":
        return [Image.fromarray(pixels) for pixels in as_pixels(images_BCHW).numpy()]
    scaled_BCHW = (images_BCHW + 1) / 2
    return scaled_BCHW if output_type == "pt" else scaled_BCHW.permute(0, 2, 3, 1).numpy()


def _warn(line: str) -> None:
    """Warns of a damaged checkpoint that is passed over."""
    warnings.warn(line, stacklevel=2)
