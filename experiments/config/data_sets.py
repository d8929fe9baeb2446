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

from experiments.config.blocks import BLOCKS
from experiments.config.caption_kinds import Captions, ClassLabels, FeatureCaptions, TokenCaptions
from experiments.config.metric_row import ImageKind
from experiments.config.prepared_settings import named_by_path, with_latents, with_pixels
from experiments.config.values import OneOf

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig


@dataclass(frozen=True)
class DataSet:
    """Holds the facts of one data set."""

    implementation: str
    """`MODULE:CLASS` of the class that makes its batches, an `ImageSource`; it is imported where torch is allowed."""
    captions: type[TokenCaptions] | type[FeatureCaptions] | None
    """The kind of its captions; None where its images have classes alone."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The `data.*` settings that have a single value, which is also their default."""
    num_classes: int | None = None
    """The number of classes of its images, for blocks that are conditioned on the class; None where they have none."""
    complete: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    """Completes the nested settings of a run on it where they follow from files. Raises `ConfigError`."""
    has_pixels: bool = True
    """Says whether the model sees pixels. Otherwise another network has to decode the samples."""
    has_scenes: bool = False
    """Says whether images are scenes that the judge can read, which `shapes-geneval` and `frechet-shapes` need."""
    has_pictures: bool = False
    """Says whether images are those of a prepared set, which `frechet-pictures` and `caption-retrieval` need."""
    examples: tuple[str, ...] = ("",) * 6
    """The captions that `ecdit sample` takes by default: empty ones stand for the first that a data set has stored."""


def _without_previews(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings without images sampled while training, by default: they are latents until a VAE decodes."""
    return {**settings, "eval": {"sample_images": 0, **settings.get("eval", {})}}


NO_FILES = {"text_width": None, "pooled_width": None, "fingerprint": None, "path": None}
"""The settings of precomputed features and of files, which a data set that is drawn does not have."""

NO_CAPTIONS = {"vocab_size": None, "caption_length": 1, "text_width": None, "pooled_width": None}
"""The settings of captions where the class of an image takes their place."""

DATA_SETS: dict[str, DataSet] = {
    "shapes": DataSet(
        "experiments.data.sources.shapes:Shapes",
        TokenCaptions,
        fixed={"channels": 3, "vocab_size": 64, "caption_length": 16, **NO_FILES},
        num_classes=6 * 8 * 8,  # kinds of scenes, and colours and shapes of the first object
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
        complete=with_latents,
        has_pixels=False,
    ),
    "pixels": DataSet(
        "experiments.data.sources.pixels:Pixels",
        FeatureCaptions,
        fixed={"channels": 3, "vocab_size": None},
        complete=with_pixels,
        has_pictures=True,
    ),
    "imagenet": DataSet(
        "experiments.data.sources.described:DescribedLatents",
        None,
        fixed={"channels": 4, "fingerprint": None, "path": None},
        complete=_without_previews,
        num_classes=1000,
        has_pixels=False,
    ),
    "sd3": DataSet(
        "experiments.data.sources.described:DescribedLatents",
        FeatureCaptions,
        # 77 tokens of both CLIP models and 77 of T5 (arXiv 2403.03206, section 4), in latents of 16 channels.
        fixed={
            "channels": 16,
            "vocab_size": None,
            "caption_length": 154,
            "text_width": 4096,
            "pooled_width": 2048,
            "fingerprint": None,
            "path": None,
        },
        complete=_without_previews,
        has_pixels=False,
    ),
}
"""Every data set by its name. A row may be added as long as no settings have been read."""

ITEM_BYTES = {"int64": 8, "float16": 2}


DataSetName = Annotated[str, OneOf(DATA_SETS), AfterValidator(OneOf(DATA_SETS).known)]


def data_set_of(config: RunConfig) -> DataSet:
    """Returns the row of the data set that a run uses."""
    return DATA_SETS[config.data.name]


def captions_of(config: RunConfig) -> Captions:
    """Returns the captions of a run's data, or the labels where it is conditioned on classes."""
    captions = data_set_of(config).captions
    if config.data.num_classes is not None or captions is None:
        return ClassLabels.of(config.data)
    return captions.of(config.data)


def image_kinds(config: RunConfig) -> frozenset[ImageKind]:
    """Returns what the images of a run can be measured as, by its data set and what its model is conditioned on."""
    row = data_set_of(config)
    kinds: dict[ImageKind, bool] = {
        "scenes": row.has_scenes, "pictures": row.has_pictures, "classes": config.data.num_classes is not None
    }  # fmt: skip
    return frozenset(kind for kind, is_so in kinds.items() if is_so)


def caption_bytes(config: RunConfig) -> int:
    """Returns the bytes that the caption of one image takes in a batch."""
    return sum(prod(shape) * ITEM_BYTES[kind] for shape, kind in captions_of(config).tensors.values())


def completed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested settings of a run, completed from the files of its data set where it has some."""
    settings = named_by_path(settings)
    row = DATA_SETS.get(settings.get("data", {}).get("name", ""))
    return dict(settings) if row is None else row.complete(settings)


def fixed_settings(given: Mapping[str, Any], block: str) -> dict[str, Any]:
    """Returns `data.*` settings: `given`, and below them those which its data set fixes for a run with this block."""
    row = DATA_SETS.get(str(given.get("name", "shapes" if is_labelled(block) else "")))
    if row is None:
        return dict(given)
    classes = {"num_classes": row.num_classes} if is_labelled(block) and row.num_classes is not None else {}
    return {**classes, **fixed_by(row, block), **given}


def fixed_by(row: DataSet, block: str) -> Mapping[str, Any]:
    """Returns the `data.*` settings that have a single value on a data set with this block."""
    if row.num_classes is None or not is_labelled(block):
        return row.fixed
    # Where images have classes alone, there may be fewer: weights that were trained on a part of ImageNet, for example.
    return {**row.fixed, **NO_CAPTIONS, **({} if row.captions is None else {"num_classes": row.num_classes})}


def is_labelled(block: str) -> bool:
    """Says whether a block is conditioned on classes."""
    return block in BLOCKS and BLOCKS[block].condition == "class"
