"""Samples a run that reads features of captions, and decodes its latents by the data set's VAE.

The features of captions of the validation set are stored in the data set, so that neither T5 nor CLIP is needed; new
captions are encoded where static word embeddings do it. The VAE is looked for where it was when the data set was made,
or where the user says; a different one is refused, because it would decode the latents wrongly.

Legend: B images of a batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from experiments.config.data_sets import captions_of, data_set_of
from experiments.data.sources.image_source import FeatureSource, open_source
from experiments.errors import ConfigError
from experiments.evaluation.sampling.finite import require_finite_images
from experiments.evaluation.sampling.generate import caption_ids, empty_of, image_noise, integrate
from experiments.evaluation.sampling.load_run import LoadedRun, current_device
from experiments.evaluation.sampling.prompts import texts_of
from experiments.evaluation.sampling.settings import Conditions


def with_data_set(run: LoadedRun, folder: Path | None) -> LoadedRun:
    """Returns the run with its data set at another place; None leaves it where it was when the run was trained.

    Raises `ConfigError` for a folder where the data of the run have none.
    """
    if folder is None:
        return run
    if run.config.data.path is None:
        raise ConfigError(
            f"--data {folder} does not fit data.name={run.config.data.name}, whose images are in no folder.",
            "Leave out --data.",
        )
    data = run.config.data.model_copy(update={"path": str(folder)})
    return replace(run, config=run.config.model_copy(update={"data": data}))


def opened_decoder(run: LoadedRun, vae: str | None) -> Callable[[Tensor], Tensor] | None:
    """Returns what turns latents of classes into pixels [B, 3, H, W] in [-1, 1]; None for a run on pixels.

    Raises `ConfigError` where the VAE is missing or a different one, and where one is named for pixels.
    """
    if data_set_of(run.config).has_pixels:
        if vae is not None:
            raise ConfigError(f"--vae {vae} does not fit a run on pixels, which nothing decodes.", "Leave out --vae.")
        return None
    return cast(FeatureSource, open_source(run.config.data)).decoder(vae, current_device())


def texts_to_sample(run: LoadedRun, asked: Sequence[str] | Sequence[int]) -> list[str]:
    """Returns the texts of what is asked for before it is sampled: captions, names of classes, or, where a run reads
    stored captions and is asked for none, those that `sample_validation` will take.

    Raises `ConfigError` for words and classes that the run does not know, and for a data set that is missing.
    """
    if captions_of(run.config).in_words or run.config.data.num_classes is not None:
        caption_ids(run.config, asked)
    elif not any(asked):
        source = cast(FeatureSource, open_source(run.config.data))
        return source.validation_captions(range(min(len(asked), source.num_validation_images())))
    return texts_of(run, asked)


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images, float32 [B, 3, H, W] in [-1, 1] on the CPU, all of one caption together, and the captions."""

    images_BCHW: Tensor
    captions: list[str]


def sample_validation(
    run: LoadedRun,
    captions: Sequence[str] | int,
    per_caption: int,
    conditions: Conditions,
    vae: str | None = None,
    on_call: Callable[[], None] = lambda: None,
) -> DecodedImages:
    """Samples images of `captions`, or of so many of the validation set; fewer captions where it has fewer.

    Raises `ConfigError` before anything is sampled, where the data set or the VAE is missing or a different one, and
    `RunFailedError` where the sampled latents are not finite.
    """
    source = cast(FeatureSource, open_source(run.config.data))
    decode = source.decoder(vae, current_device())
    if isinstance(captions, int):
        numbers = range(min(captions, source.num_validation_images()))
        stored, captions = source.validation(numbers), source.validation_captions(numbers)
        features = stored["text_BLV"], stored["text_length_B"], stored["pooled_BU"]
    else:
        features = source.encode(captions)
    caption = tuple(part.repeat_interleave(per_caption, dim=0) for part in features)
    device, images = next(run.model.parameters()).device, []
    for first in range(0, len(captions) * per_caption, conditions.batch_images):
        text, length, pooled = (part[first : first + conditions.batch_images].to(device) for part in caption)
        null: Any = empty_of(run.model, run.config, (text, length, pooled))
        noise = image_noise(run.config, range(first, first + len(text)), conditions.seed).to(device)
        latent_BCHW = integrate(
            run.model, (text, length, pooled), null, noise, conditions.sampler, lambda time, output: on_call(),
        )  # fmt: skip
        require_finite_images(latent_BCHW)
        images.append(decode(latent_BCHW))
    return DecodedImages(torch.cat(images), list(captions))
