"""Checks `config.json` of the encoders before a network is built from it.

A config may come from anywhere. A number in it that is absurd makes a library allocate or build for hours before it
compares the shapes with the weights, and one of a wrong type raises whatever it raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.errors import ConfigError
from experiments.inputs import read_input, unique_keys
from experiments.text import printable, shortened

CONFIG_FILE = "config.json"
MAX_WIDTH = 2**20
"""The largest number in a config; the vocabulary of umT5 has 256,384 tokens."""
MAX_LAYERS = 1024
MAX_CONV_CHANNELS = 2**14
SHOWN_CHARACTERS = 80
CLIP_PLACES = 77
"""The most tokens of every CLIP that OpenAI published."""

Channels = Annotated[int, Field(ge=1, le=MAX_CONV_CHANNELS)]


class VaeConfig(BaseModel):
    """Holds the keys of an AutoencoderKL's config that are used, with the defaults of diffusers."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    block_out_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=16)] = (64,)
    latent_channels: Channels = 4
    layers_per_block: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 1
    scaling_factor: Annotated[float, Field(gt=0)] = 0.18215
    shift_factor: float | None = None


def read_vae_config(path: str, folder: Path) -> VaeConfig:
    """Returns the config of the VAE in `folder`. Raises `ConfigError`, naming `path`, for the first wrong key."""
    try:
        return VaeConfig.model_validate(read_encoder_config("vae", path, folder))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise _wrong("vae", path, f"{key} is {_shown(first['input'])}: {first['msg'].lower()}") from error


def read_clip_places(path: str, folder: Path) -> int:
    """Returns the most tokens that the CLIP in `folder` reads. Raises `ConfigError`, naming `path`, for no number.

    The config of a whole CLIP has a part for its text, and one that leaves the number out means the usual 77.
    """
    config = read_encoder_config("clip", path, folder)
    part = config.get("text_config")
    places = (part if isinstance(part, dict) else config).get("max_position_embeddings", CLIP_PLACES)
    if isinstance(places, bool) or not isinstance(places, int) or places < 1:
        raise _wrong("clip", path, f"max_position_embeddings is {_shown(places)}, and no number of tokens")
    return places


def read_encoder_config(name: str, path: str, folder: Path) -> dict[str, Any]:
    """Returns the config of an encoder. Raises `ConfigError` where it is no JSON object, or its numbers are absurd."""
    try:
        config = json.loads(read_input(folder / CONFIG_FILE), object_pairs_hook=unique_keys)
    except OSError as error:
        raise _wrong(name, path, (error.strerror or str(error)).lower()) from error
    except (ValueError, RecursionError) as error:
        raise _wrong(name, path, f"it is not JSON ({shortened(printable(str(error)), SHOWN_CHARACTERS)})") from error
    if not isinstance(config, dict):
        raise _wrong(name, path, "it is not a JSON object")
    for key, number in _numbers(config):
        most = MAX_LAYERS if "layers" in key else MAX_WIDTH
        if not abs(number) <= most:  # also where it is not a number
            raise _wrong(name, path, f"{printable(key)} is {_shown(number)}, and at most {most:,} is read")
    return config


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(value, dict):
        for inner, each in value.items():
            yield from _numbers(each, inner)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def _shown(value: object) -> str:
    return shortened(printable(repr(value)), SHOWN_CHARACTERS)


def _wrong(name: str, path: str, what: str) -> ConfigError:
    return ConfigError(f"--{name} {path} has a {CONFIG_FILE} that cannot be used: {what}.", "Copy the model again.")
