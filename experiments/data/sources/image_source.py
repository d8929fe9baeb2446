"""Defines what the suite asks of a data set: images and captions of batches, and for samples captions and pixels.

A data set has a row in `experiments.config.data_sets` and a class in a file of this folder. `TokenSource` does most of
the work for one that is drawn: its subclasses say which words there are and draw images. `FeatureSource` is what a data
set with precomputed captions answers in addition. Noise, times and masks are not a source's affair: `loader.py` makes
them, the same for every data set.

Legend: B images of a batch, C channels, H rows, W columns, L caption length, V, U widths of text features (tokens,
pooled).
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from experiments.config.caption_kinds import PAD_TOKEN, START_TOKEN
from experiments.config.data_sets import DATA_SETS
from experiments.config.schema import DataConfig
from experiments.errors import ConfigError

SourceSplit = Literal["train", "validation"]


class ImageSource(Protocol):
    """Provides images and captions of one data set.

    Image i is the same whoever asks for it and in whatever batch, so that a run resumes exactly and ranks together see
    the global batch. `training` and `validation` return `index_B`, `pixels_BCHW` and the caption tensors of a `Batch`,
    whose names and shapes are those of `tensors` of the data set's captions.
    """

    def __init__(self, data: DataConfig) -> None:
        """Opens the data set. Raises `ConfigError` where its files are not those that the settings describe."""

    def check(self) -> None:
        """Raises `ConfigError`, before a model is built, where files are missing or damaged."""

    def training(self, images: range, dropped_B: Tensor) -> dict[str, Tensor]:
        """Returns images of the endless training stream, with the empty caption where `dropped_B` is True."""

    def validation(self, images: range) -> dict[str, Tensor]:
        """Returns the first images of the validation set, which are the same for every run."""

    def parts(self, num_images: int) -> Mapping[str, Callable[[int], object]]:
        """Returns the parts of making a batch of `num_images` from a given image on, for `ecdit bench data`."""


class TokenSource(ABC):
    """A data set of pixels that are drawn as they are asked for, with captions in a closed vocabulary.

    A subclass has `words` and `draw`. The first two token ids are padding and start, and word i has the id i + 2. Where
    its row has classes, it also has `labels`, and `class_names` if they have names.
    """

    words: ClassVar[tuple[str, ...]]

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    @abstractmethod
    def draw(self, images: range, split: SourceSplit) -> tuple[Tensor, list[str]]:
        """Returns pixels in [-1, 1], float32 [B, C, H, W], and the caption of each image, from counters at `images`."""

    def labels(self, images: range, split: SourceSplit) -> Sequence[int]:
        """Returns the class of each image, from 0 to `data.num_classes - 1`."""
        raise NotImplementedError

    def tokenize(self, caption: str) -> Sequence[int]:
        """Returns the ids of a caption. Raises `ConfigError` for unknown words and for a caption that is too long."""
        words, length = caption.lower().split(), self.data.caption_length
        unknown = dict.fromkeys(word for word in words if word not in self.words)
        if unknown:
            raise ConfigError(
                f"the vocabulary of the data set lacks the words {', '.join(map(repr, unknown))}.",
                f"Known: {', '.join(self.words)}.",
            )
        if len(words) >= length:
            raise ConfigError(f"the caption has {len(words)} words: {caption!r}.", f"Use at most {length - 1} words.")
        return [START_TOKEN, *(self.words.index(word) + 2 for word in words), *[PAD_TOKEN] * (length - 1 - len(words))]

    def check(self) -> None:  # noqa: B027 (not abstract: most sets that are drawn have nothing to check)
        """Does nothing, because there are no files."""

    def training(self, images: range, dropped_B: Tensor) -> dict[str, Tensor]:
        """Returns the images whose numbers are `images`."""
        drawn = self._drawn(images, "train")
        if self.data.num_classes is not None:
            drawn["label_B"][dropped_B] = self.data.num_classes  # the null class
        else:
            drawn["caption_BL"][dropped_B] = torch.tensor(self.tokenize(""))
        return drawn

    def validation(self, images: range) -> dict[str, Tensor]:
        """Returns images of the validation split."""
        return self._drawn(images, "validation")

    def parts(self, num_images: int) -> Mapping[str, Callable[[int], object]]:
        """Returns drawing as the only part."""
        return {"draw": lambda first: self.draw(range(first, first + num_images), "train")}

    def token_ids(self, captions: Sequence[str]) -> Tensor:
        """Returns token ids, int64 [B, L]. Raises `ConfigError` as `tokenize` does."""
        return torch.tensor([self.tokenize(caption) for caption in captions])

    def _drawn(self, images: range, split: SourceSplit) -> dict[str, Tensor]:
        pixels_BCHW, captions = self.draw(images, split)
        drawn = {"index_B": torch.arange(images.start, images.stop), "pixels_BCHW": pixels_BCHW}
        if self.data.num_classes is not None:
            return {**drawn, "label_B": torch.tensor(self.labels(images, split))}
        return {**drawn, "caption_BL": self.token_ids(captions)}


class FeatureSource(ImageSource, Protocol):
    """A data set with precomputed captions, whose samples may have to be decoded."""

    @property
    def takes_captions(self) -> bool:
        """Says whether new captions can be encoded where a model is sampled."""

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns features of new captions as in a batch; only where it `takes_captions`.

        Raises `ConfigError` where the encoder is missing or another one, or knows no word of a caption.
        """

    def num_cut(self, captions: Sequence[str]) -> int:
        """Returns how many new captions are longer than a model of this data set reads, so that `encode` cuts them."""

    def num_validation_images(self) -> int:
        """Returns how many captions are stored that a sample can be made of."""

    def validation_captions(self, numbers: range) -> list[str]:
        """Returns the captions of these images of the validation set as text."""

    def null_caption(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the empty caption `num` times: features of tokens, lengths and pooled features, as in a batch."""

    def decoder(self, model: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Returns the function that turns sampled latents into pixels [B, 3, H, W] in [-1, 1], on the CPU.

        `model` names its network, by default the one that made the data set. Raises `ConfigError` where it is missing
        or a different one.
        """


def _implementation(data: DataConfig) -> Any:
    return pkgutil.resolve_name(DATA_SETS[data.name].implementation)


def open_source(data: DataConfig) -> ImageSource:
    """Opens the data set of the settings. Raises `ConfigError` for a damaged one, and for another than theirs."""
    source: ImageSource = _implementation(data)(data)
    return source


def class_names(data: DataConfig) -> Sequence[str] | None:
    """Returns the names of the classes in the order of their numbers; None where the data set has no names.

    Raises `ConfigError` where they are those of a prepared data set that is missing, or another one.
    """
    names: Sequence[str] | None = getattr(_implementation(data), "class_names", lambda data: None)(data)
    return names


def named_classes(data: DataConfig, labels: Sequence[int]) -> list[str]:
    """Returns the names of classes, which are their numbers where the data set has no names."""
    names = class_names(data)
    return [f"class {label}" if names is None else names[label] for label in labels]


def stored_labels(data: DataConfig, num_images: int) -> list[int] | None:
    """Returns the classes of the first validation images, anew from the first where there are fewer.

    They are None where a data set stores no labels.
    """
    source: Any = open_source(data)
    if not hasattr(source, "validation_labels"):
        return None
    stored: list[int] = source.validation_labels(range(min(num_images, source.num_validation_images())))
    return [stored[number % len(stored)] for number in range(num_images)]


def open_words(data: DataConfig) -> TokenSource:
    """Opens a data set whose captions are in words (`TokenCaptions`)."""
    source = open_source(data)
    assert isinstance(source, TokenSource), f"data.name={data.name} has no words"
    return source
