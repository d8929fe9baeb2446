"""Reads `index.json` of a data set that `ecdit data prepare` wrote.

A data set is a folder of safetensors shards, which can be mapped into memory, and this index, which is written last: a
folder with an index is complete. Its images have captions, or classes. The fingerprint of a data set, which runs keep,
covers the checksums of all files, what decodes them, and the order of the classes, never a path: a data set may be
moved and copied. `prepared_settings.py` makes settings of runs from it.

A shard of N images with M text tokens together holds the tensors (float16 where no type is given)
    latent_mean_NCHW, latent_std_NCHW   of the VAE's posterior, before scale and shift
    text_MV, text_start_N1 (int64)      T5 features without padding; those of image n begin at text_start_N1[n]
    pooled_NU                           CLIP's pooled features
    caption_bytes, caption_start_N1     captions as UTF-8 (uint8, int64)
    row_N (int64)                       row of the source
What stands for the images and what stands for the text are chosen separately. A set of pixels has in place of latents
    pixels_NCHW (uint8)                 read as x / 127.5 - 1
    flips_N (bool)                      whether the image may be mirrored, in sets that ask for it
A shard of a labelled set has in place of captions
    label_N (int64)                     the class, from 0 to the number of `class_names` - 1
Other encoders fill the same tensors as T5 and CLIP together. T5 alone has the mean over the tokens of a caption as
pooled features, CLIP alone its last hidden states as features of tokens, and static word embeddings rows of words and
their mean.
The file of the empty caption has the tensors of a captioned shard except those of images; a labelled set has no such
file. `experiments.data.sources.prepared` reads these files, and `experiments.data.prepare.job` writes them. This module
does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experiments.errors import ConfigError
from experiments.inputs import MAX_ROWS_BYTES, parse_json, read_input
from experiments.text import printable, shortened

INDEX_FILE = "index.json"
REQUEST_FILE = "request.json"
"""The file that holds the request for which a data set is made."""
SCHEMA_VERSION = 1
"""The version of sets of latents with features of T5 and CLIP, or with classes."""
FORMS_VERSION = 2
"""The version of sets in any other form, so that an ecdit that cannot read them says so."""
FINGERPRINT_DIGITS = 16
SetSplit = Literal["train", "validation", "held_out"]
"""`held_out` is neither trained on nor validated with: combinations that a trained model can be asked for."""
ImageForm = Literal["latents", "pixels"]
EncoderName = Literal["vae", "t5", "clip", "static"]
TEXT_ENCODERS: tuple[frozenset[EncoderName], ...] = (
    frozenset({"t5", "clip"}), frozenset({"t5"}), frozenset({"clip"}), frozenset({"static"}),
)  # fmt: skip
"""The encoders that together make the features of captions."""
MAX_IMAGE_SIZE = 4096
"""The largest side, in pixels, to which images are resized."""
MAX_CAPTION_LENGTH = 4096
MAX_WIDTH = 2**16
MAX_CLASSES = 2**16
SHOWN_CHARACTERS = 200
MAX_CLASS_NAME = 2**16
"""The most characters of the name of a class, as of a caption."""
Count = Annotated[int, Field(ge=0, lt=2**53)]
Size = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
ClassName = Annotated[str, Field(min_length=1, max_length=MAX_CLASS_NAME)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Entry):
    """Describes one file of tensors: its name in the folder, its length in bytes and its SHA-256."""

    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
    num_bytes: Count
    sha256: str


class Shard(FileEntry):
    """Describes a shard of one split. `source_sha256` is the hash of the image files and captions in it.

    `num_cut_...` count captions that were too long for an encoder; None where this was not counted. They and
    `num_tokens`, the tokens of all captions, are None where images have classes.
    """

    split: SetSplit
    num_images: Count
    num_tokens: Count | None = None
    source_sha256: str
    num_cut_t5: Count | None = None
    num_cut_clip: Count | None = None
    num_cut_static: Count | None = None


class Encoder(_Entry):
    """Describes a model that made a part of the data: its path, its class, and the SHA-256 of its files."""

    path: str
    kind: str
    sha256: str


class Source(_Entry):
    """Describes the source of the images; `num_rows` includes rows that were left out as damaged."""

    path: str
    num_rows: Count
    image_column: str
    caption_column: str


class Package(_Entry):
    """Describes a package that a part of the data comes from: what it gave, its version and its license."""

    name: str
    version: str
    license: str
    gave: str


class Credits(_Entry):
    """Says where images that come in packages are from: who made them, under which license, and how many there are."""

    attribution: str
    license: str
    packages: tuple[Package, ...]
    counts: dict[str, Count]


class DataSetIndex(_Entry):
    """Holds the whole content of `index.json`."""

    schema_version: int
    fingerprint: str
    image_size: Size
    """Pixels of a side, before encoding."""
    images: ImageForm = "latents"
    background: str | None = None
    """The colour that transparency became; None for white behind latents."""
    flips: bool = False
    """Says whether training mirrors images at random, except those whose text names a side."""
    latent_size: Size
    """The side of what the model sees: latents, or pixels."""
    channels: Width
    caption_length: Annotated[int, Field(ge=1, le=MAX_CAPTION_LENGTH)] | None = None
    """The most text tokens of a caption, to which captions are padded; this and what else belongs to captions is None
    where images have classes."""
    text_width: Width | None = None
    pooled_width: Width | None = None
    class_names: Annotated[tuple[ClassName, ...], Field(min_length=1, max_length=MAX_CLASSES)] | None = None
    """The classes in the order of their numbers; None where images have captions."""
    scaling_factor: float | None = None
    """The model sees (latent - shift_factor) * scaling_factor; both factors and the VAE are None for pixels."""
    shift_factor: float | None = None
    vae: Encoder | None = None
    t5: Encoder | None = None
    clip: Encoder | None = None
    static: Encoder | None = None
    source: Source
    origin: Credits | None = None
    empty_caption: FileEntry | None = None
    shards: tuple[Shard, ...]
    num_damaged: Count

    @model_validator(mode="after")
    def _has_captions_or_classes(self) -> Self:
        """Raises `ValueError` where it has a part of what belongs to captions, or that and classes; or of latents."""
        of_captions = (self.caption_length, self.text_width, self.pooled_width, self.empty_caption)
        if {each is None for each in of_captions} != {self.class_names is not None}:
            raise ValueError("neither captions nor classes")
        if self.text_encoders not in ((frozenset(),) if self.class_names is not None else TEXT_ENCODERS):
            raise ValueError("not the encoders of its captions")
        if {each is None for each in (self.vae, self.scaling_factor, self.shift_factor)} != {self.images == "pixels"}:
            raise ValueError("neither latents nor pixels")
        return self

    @property
    def text_encoders(self) -> frozenset[EncoderName]:
        """Returns the names of the encoders of its captions; none where images have classes."""
        names: tuple[EncoderName, ...] = ("t5", "clip", "static")
        return frozenset(name for name in names if getattr(self, name) is not None)

    def num_images(self, split: SetSplit) -> int:
        """Returns the number of images of a split over all shards."""
        return sum(shard.num_images for shard in self.shards if shard.split == split)

    def num_cut(self, encoder: EncoderName) -> int | None:
        """Returns how many captions were too long for `encoder`; None where that was not counted."""
        counts = [getattr(shard, f"num_cut_{encoder}") for shard in self.shards]
        return None if None in counts else sum(counts)

    def files(self) -> tuple[FileEntry, ...]:
        """Returns the entries of all files of tensors."""
        return self.shards if self.empty_caption is None else (self.empty_caption, *self.shards)


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """Returns hex digits of the SHA-256 of an index's JSON content without paths, so that a moved data set keeps it."""
    named = {key: value for key, value in content.items() if key not in ("fingerprint", "source")}
    for encoder in {"vae", "t5", "clip", "static"} & content.keys():
        named[encoder] = {key: value for key, value in content[encoder].items() if key != "path"}
    text = json.dumps(named, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def read_index(folder: Path) -> DataSetIndex:
    """Returns the index of a data set. Raises `ConfigError` where it is missing, unfinished or damaged."""
    path = folder / INDEX_FILE
    if not os.path.isfile(path):  # a name that is too long for a file is none
        raise _missing(folder)
    try:
        text = read_input(path, MAX_ROWS_BYTES)
        content = parse_json(text)
        version = content["schema_version"]
        if version not in (SCHEMA_VERSION, FORMS_VERSION):
            raise ConfigError(
                f"{path} is of schema version {version}, and this ecdit reads up to {FORMS_VERSION}.",
                "Prepare the data set again, or use the ecdit that wrote it.",
            )
        index = DataSetIndex.model_validate_json(text, strict=True)
        intact = fingerprint_of(content) == index.fingerprint
        if not (index.num_images("train") and index.num_images("validation")):
            raise ValueError("a split without images")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        hint = "Run its `ecdit data prepare` again, which writes it anew, or copy the data set again."
        raise ConfigError(f"{path} is damaged.", hint) from error
    if not intact:
        raise ConfigError(
            f"{path} was changed after it was written: its fingerprint is another one.", "Prepare the data set again."
        )
    return index


def _missing(folder: Path) -> ConfigError:
    name = shortened(printable(str(folder)), SHOWN_CHARACTERS)
    if os.path.isfile(folder / REQUEST_FILE):
        return ConfigError(f"data.path={name} is not finished.", "Run the same `ecdit data prepare` again.")
    what = "holds no data set" if os.path.isdir(folder) else "is not a folder"
    return ConfigError(
        f"data.path={name} {what}.",
        f"Write one with: ecdit data prepare SOURCE {name} (SOURCE may be the name of a data set on the Hub).",
    )
