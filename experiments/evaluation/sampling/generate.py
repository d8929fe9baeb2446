"""Samples images from captions or classes: model, sampler, guidance, and noise that belongs to the image's number.

Image i starts from the same noise whatever the batch it is sampled in, so that with `routing.group_images=1` image i is
the same in every batch.

Legend: B images, C channels, H, W height and width, L caption length, T tokens of an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from experiments.config.sampler_rows import require_shift, require_steps
from experiments.config.schema import RunConfig
from experiments.data.loader import validation_set
from experiments.data.sources.image_source import FeatureSource, open_source, open_words
from experiments.errors import ConfigError
from experiments.evaluation.sampling.replay import velocity_of
from experiments.flow.objective_contract import Predicted, objective_of
from experiments.flow.samplers import Caption, Guidance, find_sampler, guided
from experiments.models.dit import DiT, DiTOutput
from experiments.models.embed import Caption as AnyCaption

Prompts = Sequence[str] | Sequence[int] | tuple[Tensor, Tensor, Tensor]
"""The requests to a run: captions in its words, classes, or features of captions that its data set stores."""


@dataclass(frozen=True)
class SamplerSettings:
    """The integration: number of steps, classifier-free guidance, timestep shift, and the sampler's name."""

    num_steps: int
    guidance: Guidance
    shift: float = 1.0
    sampler: str = "euler"

    @classmethod
    def asked(
        cls, config: RunConfig, steps: int | None, guidance: Guidance, shift: float | None, sampler: str
    ) -> SamplerSettings:
        """Returns what a command asks for; what is None is as the run samples while it trains.

        Raises `ConfigError` for a shift or steps that do not fit the objective, and for more channels than there are.
        """
        require_shift(shift, config.flow.objective)
        if guidance.channels is not None and guidance.channels >= config.data.channels:
            raise ConfigError(
                f"--guidance-channels {guidance.channels} leaves none out: data.channels={config.data.channels}.",
                "Leave out --guidance-channels to guide all.",
            )
        own = cls.of(config)
        require_steps(steps or own.num_steps, config.flow.objective, "--steps ")
        return cls(steps or own.num_steps, guidance, shift or own.shift, sampler)

    @classmethod
    def of(cls, config: RunConfig) -> SamplerSettings:
        """Returns those with which a run samples while it trains."""
        return cls(config.eval.sample_steps, Guidance(config.eval.guidance), config.flow.time_shift)


def image_noise(config: RunConfig, numbers: Sequence[int], seed: int) -> Tensor:
    """Returns standard normal noise [B, C, H, W] of the images called `numbers`, the same on every device."""
    generators = [image_generator(seed, number) for number in numbers]
    return torch.stack([torch.randn(noise_shape(config), generator=generator) for generator in generators])


def noise_shape(config: RunConfig) -> tuple[int, int, int]:
    """Returns the shape [C, H, W] of the noise of one image."""
    return config.data.channels, config.data.image_size, config.data.image_size


def image_generator(seed: int, number: int) -> torch.Generator:
    """Returns the generator of the noise of the image called `number`."""
    return torch.Generator().manual_seed(_mixed(seed, number))


def _mixed(seed: int, number: int) -> int:
    """Returns one seed of 63 bits from both, by a hash, so that neighbours are unrelated and seeds of any size fit."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def validation_captions(config: RunConfig, num_images: int) -> AnyCaption:
    """Returns token ids [B, L], classes [B] or features of the first `num_images` images of the validation split.

    They come anew from the first where a prepared set has fewer. No other images are made.
    """
    source: Any = open_source(config.data)
    stored = source.num_validation_images() if hasattr(source, "num_validation_images") else num_images
    few = config.eval.model_copy(update={"images": min(num_images, stored)})
    captions: list[Any] = [batch.caption for batch in validation_set(config.model_copy(update={"eval": few}))]
    row_B = torch.arange(num_images) % few.images
    if isinstance(captions[0], Tensor):
        ids: Tensor = torch.cat(captions)
        return ids[row_B]
    text, length, pooled = (torch.cat(parts)[row_B] for parts in zip(*captions, strict=True))
    return text, length, pooled


def empty_of(model: DiT, config: RunConfig, caption: AnyCaption) -> AnyCaption:
    """Returns as many empty captions, or null classes, on the device of `caption`."""
    if isinstance(caption, Tensor):
        return model.null_of(caption)
    source = cast(FeatureSource, open_source(config.data))
    return moved(source.null_caption(len(caption[0])), caption[0].device)


def moved(caption: AnyCaption, device: torch.device) -> AnyCaption:
    """Returns captions on another device."""
    if isinstance(caption, Tensor):
        return caption.to(device)
    text, length, pooled = (part.to(device) for part in caption)
    return text, length, pooled


def caption_ids(config: RunConfig, prompts: Sequence[str] | Sequence[int]) -> Tensor:
    """Returns token ids [B, L] of captions, or classes [B] of a run that is conditioned on them.

    Raises `ConfigError` that names words outside the vocabulary of the data, or a class that they do not have.
    """
    num_classes = config.data.num_classes
    if num_classes is None:
        return open_words(config.data).token_ids([str(prompt) for prompt in prompts])
    for label in prompts:
        if not 0 <= int(label) < num_classes:
            raise ConfigError(
                f"class {label} does not exist: the run has {num_classes:,} classes.",
                f"Name one from 0 to {num_classes - 1}.",
            )
    return torch.tensor([int(label) for label in prompts], dtype=torch.int64)


def part_of(prompts: Prompts, here: slice) -> Prompts:
    """Returns some of the prompts."""
    if isinstance(prompts, tuple):
        text, length, pooled = prompts
        return text[here], length[here], pooled[here]
    return prompts[here]


def read_prompts(config: RunConfig, prompts: Prompts) -> AnyCaption:
    """Returns what the model reads. Raises `ConfigError` as `caption_ids` does."""
    return prompts if isinstance(prompts, tuple) else caption_ids(config, prompts)


@torch.no_grad()
def sample(
    model: DiT,
    caption: AnyCaption,
    noise_BCHW: Tensor,
    settings: SamplerSettings,
    watch: Callable[[float, DiTOutput], None] | None = None,
    null: AnyCaption | None = None,
) -> Tensor:
    """Returns images [B, C, H, W] in [-1, 1], float32, of token ids or classes, or of features with the empty `null`.

    `watch(t, output)` sees every call of the model. The model is put in evaluation mode and back again. A pixel that is
    not finite becomes NaN.
    """
    asked: Any = moved(caption, noise_BCHW.device)
    empty: Any = model.null_of(asked) if null is None else moved(null, noise_BCHW.device)
    image_BCHW = integrate(model, asked, empty, noise_BCHW, settings, watch)
    return image_BCHW.masked_fill(~image_BCHW.isfinite(), torch.nan).clamp(-1, 1)  # clamp would hide infinity


@torch.no_grad()
def integrate(
    model: DiT,
    caption: Caption,
    null: Caption,
    noise_BCHW: Tensor,
    settings: SamplerSettings,
    watch: Callable[[float, DiTOutput], None] | None = None,
) -> Tensor:
    """Integrates the noise to float32 [B, C, H, W]: pixels, or latents. `null` is the empty caption."""

    forward, objective = velocity_of(model), objective_of(model.flow)

    def predicted(x_BCHW: Tensor, time_B: Tensor, asked: Caption) -> Predicted:
        read_BCHW, read_B = objective.network_input(x_BCHW, time_B)
        if watch is None:
            return objective.predicted(model.to_image(forward(read_BCHW, read_B, asked)), x_BCHW, time_B)
        output = model(read_BCHW, read_B, asked)
        watch(float(time_B[0]), output)
        return objective.predicted(model.to_image(output.velocity_BKP), x_BCHW, time_B)

    was_training = model.training
    model.eval()
    field, times = (
        guided(predicted, caption, null, settings.guidance),
        objective.grid(settings.num_steps, settings.shift),
    )
    *_, image_BCHW = find_sampler(settings.sampler)(field, noise_BCHW, times, objective)
    model.train(was_training)
    return image_BCHW
