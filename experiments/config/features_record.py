"""Reads the record of the network that `ecdit data features` trains on a prepared set of pixels, free of torch.

The network lies in the folder of the set and belongs to it: the record names the version of the recipe, the fingerprint
of the set and the checksum of the weights. Where one of them is another, no value is measured. `fingerprint_of` leaves
both files out, so that a set with a network is the same set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from experiments.config.prepared_set import DataSetIndex, read_index
from experiments.errors import ConfigError
from experiments.inputs import parse_json, read_input, sha256_of_files
from experiments.text import printable

RECORD_FILE, WEIGHTS_FILE = "features.json", "features.safetensors"
RECIPE_VERSION = 1
"""The version of the network and of its training. It changes with whatever changes the weights."""
DIGEST_DIGITS = 8
Count = Annotated[int, Field(ge=0, lt=2**53)]


class _FeaturesEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Retrieval(_FeaturesEntry):
    """Says for how many of the true images of a split their own caption was the nearest of `num_captions`."""

    num_right: Count
    num_images: Annotated[int, Field(ge=1, lt=2**53)]
    num_captions: Annotated[int, Field(ge=2, lt=2**53)]


class FeaturesRecord(_FeaturesEntry):
    """Holds the content of `features.json`; `held_out` is None where the set has no held-out combinations."""

    recipe_version: int
    fingerprint: str
    sha256: str
    torch_version: str
    num_training_images: Count
    validation: Retrieval
    held_out: Retrieval | None = None

    @property
    def digest(self) -> str:
        """Returns the first digits of the checksum of the weights, which rows of `evals.jsonl` carry."""
        return self.sha256[:DIGEST_DIGITS]


def require_pixels(folder: Path) -> DataSetIndex:
    """Returns the index of a set of pixels. Raises `ConfigError` for latents, and where there is no whole set."""
    index = read_index(folder)
    if index.images != "pixels":
        raise ConfigError(
            f"{folder} holds {index.images}, and the features are those of pixels.",
            "Prepare the images without a VAE: ecdit data prepare SOURCE OUT --vae none.",
        )
    return index


def read_features(folder: Path, fingerprint: str) -> FeaturesRecord:
    """Returns the record of the network of a set. Raises `ConfigError` where it is missing or of another set or recipe.

    The weights are compared with their checksum.
    """
    path, way_out = folder / RECORD_FILE, f"Train it with: ecdit data features {folder}"
    try:
        content = read_input(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} has no network of features, in which its pictures are measured.", way_out
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", way_out) from error
    try:
        version = parse_json(content)["recipe_version"]
        record = FeaturesRecord.model_validate_json(content, strict=True) if version == RECIPE_VERSION else None
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is damaged.", way_out) from error
    if record is None:
        raise ConfigError(
            f"the features of {folder} are of recipe {version!r:.20}, and this ecdit has recipe {RECIPE_VERSION}.",
            way_out,
        )
    if record.fingerprint != fingerprint:
        raise ConfigError(
            f"the features of {folder} were trained on another set (fingerprint {printable(record.fingerprint):.20}).",
            way_out,
        )
    try:
        is_whole = sha256_of_files(folder / WEIGHTS_FILE) == record.sha256
    except OSError:
        is_whole = False
    if not is_whole:
        raise ConfigError(f"{folder / WEIGHTS_FILE} is missing or damaged.", way_out)
    return record
