"""Reads images, and text features or classes, of a prepared data set from memory-mapped shards.

A batch copies only the rows that it needs out of the mapped files, so a data set may be larger than memory, and all
processes of a machine share the mapped pages. The order of an epoch is a function of (`data.seed`, epoch), and what is
random about an image follows from its position in the stream. Any process can therefore find any image of the stream by
itself, whatever the world size. `latents.py` and `pixels.py` say what stands for an image; `prepared_set.py` describes
the format.

Legend: B images of a batch, C channels, H rows, W columns, L caption length, V, U widths of text features (tokens,
pooled).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from experiments.config.prepared_set import DataSetIndex, FileEntry, SetSplit, read_index
from experiments.config.schema import DataConfig
from experiments.data.order import shuffled
from experiments.data.prepare.static_words import StaticWords, padded_features
from experiments.data.sources.mapped_shards import (
    Found,
    MappedShard,
    ShardedRows,
    check_content,
    check_length,
    check_tensors,
)
from experiments.data.sources.padded_text import TextBuffers
from experiments.errors import ConfigError
from experiments.text import printable, shortened

VERIFIED_BYTES = 1 << 30
"""A data set up to this size is compared with its checksums before training; `ecdit data check` always does so."""


class PreparedImages(ABC):
    """Provides the images of one prepared data set for training and for validation; subclasses read what they are."""

    def __init__(self, data: DataConfig) -> None:
        """Opens `data.path`. Raises `ConfigError` where it is missing or its fingerprint is not `data.fingerprint`."""
        self.folder = folder = Path(data.path or "")
        self.data = data
        self.index = _index_of(data)
        self._empty = None if self.index.empty_caption is None else self._empty_caption(self.index.empty_caption)
        self._buffers = TextBuffers()
        self._splits: dict[SetSplit, ShardedRows] = {
            split: ShardedRows(folder, self.index, split) for split in get_args(SetSplit)
        }

    def training(self, images: range, dropped_B: Tensor) -> dict[str, Tensor]:
        """Returns images of an endless stream, with the empty caption or the null class where `dropped_B`."""
        rows = self._splits["train"]
        order_B = shuffled(self.data.seed, np.arange(images.start, images.stop), rows.num_images)
        return self._content(rows, order_B, images, "train", dropped_B, self._buffers)

    def validation(self, images: range) -> dict[str, Tensor]:
        """Returns the first images of the validation split, always the same."""
        order_B = np.arange(images.start, images.stop)
        kept_B = torch.zeros(len(images), dtype=torch.bool)
        rows = self._splits["validation"]
        return self._content(rows, order_B, images, "validation", kept_B, TextBuffers())

    @staticmethod
    def class_names(data: DataConfig) -> Sequence[str] | None:
        """Returns the names of the classes. Raises `ConfigError` for another data set than that of the settings."""
        return _index_of(data).class_names

    def check(self) -> None:
        """Checks lengths and tensors of all files, and of a small data set the checksums. Raises `ConfigError`."""
        verify = sum(file.num_bytes for file in self.index.files()) <= VERIFIED_BYTES
        for file in self.index.files():
            check_length(self.folder, file)
            if verify:
                check_content(self.folder, file)
            check_tensors(self.folder, self.index, file)

    def parts(self, num_images: int) -> Mapping[str, Callable[[int], object]]:
        """Returns reading rows, with what is random about them."""
        none_B = torch.zeros(num_images, dtype=torch.bool)
        return {"rows": lambda first: self.training(range(first, first + num_images), none_B)}

    def num_validation_images(self) -> int:
        """Returns the size of the validation split."""
        return self.index.num_images("validation")

    def num_images(self, split: SetSplit) -> int:
        """Returns the size of a split."""
        return self.index.num_images(split)

    def seen_by(self, images_seen: int) -> list[int]:
        """Returns the numbers in the training split of the images that a run has seen, in its order, each once."""
        num_images = self.num_images("train")
        order = shuffled(self.data.seed, np.arange(min(images_seen, num_images)), num_images)
        return [int(number) for number in order]

    @abstractmethod
    def images(self, found: Sequence[Found], images: range, split: SetSplit) -> Tensor:
        """Returns what the model sees of these images, float32 [B, C, H, W]; `images` are their random counters."""

    @abstractmethod
    def decoder(self, model: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Returns the function that turns what the model makes into pixels, as `FeatureSource` says."""

    @property
    def takes_captions(self) -> bool:
        """Says whether new captions can be encoded here, as static word embeddings can."""
        return self.index.static is not None

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns features of new captions as in a batch.

        Raises `ConfigError` where the embedding is missing or another one, or knows no word of a caption.
        """
        encoder = self._encoder()
        for caption in captions:
            if problem := encoder.problem(caption):
                raise ConfigError(f"{problem}: {shortened(printable(caption), 80)!r}.", "Use other words.")
        return padded_features(encoder.encode(captions).tensors, self.data.caption_length)

    def num_cut(self, captions: Sequence[str]) -> int:
        """Returns how many new captions have more tokens than the data set stores of one, so that they are cut."""
        (num_cut,) = self._encoder().encode(captions).num_cut.values()
        return num_cut

    def _encoder(self) -> StaticWords:
        assert self.index.static is not None, "`takes_captions` says that new ones are not encoded"
        return StaticWords.opened(self.data.caption_length, self.index.static)

    def validation_captions(self, numbers: range) -> list[str]:
        """Returns the captions of these images of the validation split as text."""
        return self.captions("validation", numbers)

    def captions(self, split: SetSplit, numbers: Sequence[int]) -> list[str]:
        """Returns the captions of images of a split as text, or the names of their classes."""
        if (names := self.index.class_names) is not None:
            return [names[label] for label in self.labels(split, numbers)]
        return [self._splits[split].caption(number) for number in numbers]

    def validation_labels(self, numbers: range) -> list[int]:
        """Returns the classes of these images of the validation split."""
        return self.labels("validation", numbers)

    def labels(self, split: SetSplit, numbers: Sequence[int]) -> list[int]:
        """Returns the classes of images of a split."""
        return [shard.label(inside) for shard, inside in self._found(split, numbers)]

    def text_features(self, split: SetSplit, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the features of the captions of images of a split as in a batch."""
        kept_B = torch.zeros(len(numbers), dtype=torch.bool)
        found = self._features(self._found(split, numbers), kept_B, TextBuffers())
        return found["text_BLV"], found["text_length_B"], found["pooled_BU"]

    def pooled_features(self, split: SetSplit, numbers: Sequence[int]) -> Tensor:
        """Returns the pooled features of the captions of images of a split, float16 [B, U]."""
        return torch.stack([shard.text(inside)[1] for shard, inside in self._found(split, numbers)])

    def _found(self, split: SetSplit, numbers: Sequence[int]) -> list[Found]:
        return self._splits[split].find_all(np.array(numbers, dtype=np.int64))

    def null_caption(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the empty caption `num` times: features, lengths and pooled features, as in a batch."""
        text_TV, pooled_U = self.empty.text(0)
        text_BLV = torch.zeros(num, self.data.caption_length, text_TV.shape[1], dtype=text_TV.dtype)
        text_BLV[:, : len(text_TV)] = text_TV
        return text_BLV, torch.full((num,), len(text_TV)), pooled_U.expand(num, -1).clone()

    def _content(
        self, rows: ShardedRows, order_B: np.ndarray[Any, np.dtype[np.int64]], images: range, split: SetSplit,
        dropped_B: Tensor, buffers: TextBuffers,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Reads a batch in one pass over its rows; `images` are the counters of what is random."""
        found = rows.find_all(order_B)
        content = {"index_B": torch.from_numpy(order_B), "pixels_BCHW": self.images(found, images, split)}
        if (names := self.index.class_names) is not None:
            label_B = torch.tensor([shard.label(inside) for shard, inside in found])
            return {**content, "label_B": label_B.masked_fill(dropped_B, len(names))}  # the null class
        return {**content, **self._features(found, dropped_B, buffers)}

    def _features(self, found: Sequence[Found], dropped_B: Tensor, buffers: TextBuffers) -> dict[str, Tensor]:
        """Reads the features of captions, or those of the empty caption where `dropped_B`."""
        buffer, text_BLV = buffers.take((len(found), self.data.caption_length, self.data.text_width or 0))
        lengths, pooled = [], []
        for place, ((shard, inside), dropped) in enumerate(zip(found, dropped_B.tolist(), strict=True)):
            text_TV, pooled_U = self.empty.text(0) if dropped else shard.text(inside)
            buffer.put(place, text_TV)
            lengths.append(len(text_TV))
            pooled.append(pooled_U)
        return {"text_BLV": text_BLV, "text_length_B": torch.tensor(lengths), "pooled_BU": torch.stack(pooled)}

    @property
    def empty(self) -> MappedShard:
        """Returns the file of the empty caption, which a set of captioned images has."""
        assert self._empty is not None
        return self._empty

    def _empty_caption(self, file: FileEntry) -> MappedShard:
        check_length(self.folder, file)
        return MappedShard(self.folder / file.file)


def _index_of(data: DataConfig) -> DataSetIndex:
    """Returns the index of `data.path`. Raises `ConfigError` where its fingerprint is not `data.fingerprint`."""
    index = read_index(Path(data.path or ""))
    if index.fingerprint != data.fingerprint:
        raise ConfigError(
            f"data.path={data.path} is another data set (fingerprint {index.fingerprint}) than the model's "
            f"({data.fingerprint}).",
            "Name the data set that the model was trained on, or train another model.",
        )
    return index
