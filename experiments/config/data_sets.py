"""The registry of data sets: one row for each, with the facts that planning needs, free of torch.

A data set is a row here and a file in `experiments/data/sources`, which `docs/how-to/add-a-data-set.md` explains. The
settings of a run, checks, budgets, memory, the loader, the model and the commands ask the row of `data.name`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from experiments.config.caption_kinds import Captions, FeatureCaptions, TokenCaptions
from experiments.config.prepared_set import with_prepared_set
from experiments.config.values import OneOf

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig


@dataclass(frozen=True)
class DataSet:
    """Holds the facts of one data set."""

    implementation: str
    """`MODULE:CLASS` of the class that makes its batches, an `ImageSource`; it is imported where torch is allowed."""
    captions: type[TokenCaptions] | type[FeatureCaptions]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The `data.*` settings that have a single value, which is also their default."""
    complete: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    """Completes the nested settings of a run on it where they follow from files. Raises `ConfigError`."""
    has_pixels: bool = True
    """Says whether the model sees pixels. Otherwise another network has to decode the samples."""
    has_scenes: bool = False
    """Says whether images are scenes that the judge can read, which `shapes-geneval` and `frechet-shapes` need."""
    examples: tuple[str, ...] = ("",) * 6
    """The captions that `ecdit sample` takes by default: empty ones stand for the first that a data set has stored."""


NO_FILES = {"text_width": None, "pooled_width": None, "fingerprint": None, "path": None}
"""The settings of precomputed features and of files, which a data set that is drawn does not have."""

DATA_SETS: dict[str, DataSet] = {
    "shapes": DataSet(
        "experiments.data.sources.shapes:Shapes",
        TokenCaptions,
        fixed={"channels": 3, "vocab_size": 64, "caption_length": 16, **NO_FILES},
        has_scenes=True,
        examples=(  # one of each kind
            "a circle",
            "a heart and a cross",
            "three green circles",
            "a yellow bar",
            "a red circle left of a blue square",
            "a white ring and a black heart",
        ),
    ),
    "latents": DataSet(
        "experiments.data.sources.latents:Latents",
        FeatureCaptions,
        fixed={"vocab_size": None},
        complete=with_prepared_set,
        has_pixels=False,
    ),
}
"""Every data set by its name. A row may be added as long as no settings have been read."""

ITEM_BYTES = {"int64": 8, "float16": 2}


def _known(name: str) -> str:
    """Returns `name`, or raises the error that pydantic has for literals where it is no data set."""
    if name not in DATA_SETS:
        raise PydanticCustomError("literal_error", "Input should be one of {names}", {"names": [*DATA_SETS]})
    return name


DataSetName = Annotated[str, OneOf(DATA_SETS), AfterValidator(_known)]


def data_set_of(config: RunConfig) -> DataSet:
    """Returns the row of the data set that a run uses."""
    return DATA_SETS[config.data.name]


def captions_of(config: RunConfig) -> Captions:
    """Returns the captions of a run's data."""
    return data_set_of(config).captions.of(config.data)


def caption_bytes(config: RunConfig) -> int:
    """Returns the bytes that the caption of one image takes in a batch."""
    return sum(prod(shape) * ITEM_BYTES[kind] for shape, kind in captions_of(config).tensors.values())


def completed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested settings of a run, completed from the files of its data set where it has some."""
    row = DATA_SETS.get(settings.get("data", {}).get("name", ""))
    return dict(settings) if row is None else row.complete(settings)


def fixed_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `data.*` settings: `given`, and below them those which its data set fixes."""
    row = DATA_SETS.get(str(given.get("name", "")))
    return dict(given) if row is None else {**row.fixed, **given}
