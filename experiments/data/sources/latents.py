"""Reads latents, and text features or classes, of a prepared data set from memory-mapped shards.

A batch copies only the rows that it needs out of the mapped files, so a data set may be larger than memory, and all
processes of a machine share the mapped pages. The order of an epoch is a function of (`data.seed`, epoch), and the
latent of an image is drawn anew from its posterior in every epoch, by the image's position in the stream. Any process
can therefore find any image of the stream by itself, whatever the world size. `experiments.config.prepared_set`
describes the format.

Legend: B images of a batch, C channels, H rows, W columns, L caption length, V, U widths of text features (tokens,
pooled).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.config.prepared_set import DataSetIndex, FileEntry, SetSplit, Shard, read_index
from experiments.config.schema import DataConfig
from experiments.data.counter import Stream, normals
from experiments.data.order import shuffled
from experiments.data.prepare.encoders import Autoencoder, find_encoder
from experiments.data.sources.padded_text import TextBuffers
from experiments.errors import ConfigError
from experiments.inputs import sha256_of_files

MAX_OPEN_SHARDS = 32_768
"""The most shards that are mapped at a time. Linux allows a process 65,530 maps; mapping one again takes 0.1 ms."""
VERIFIED_BYTES = 1 << 30
"""A data set up to this size is compared with its checksums before training; `ecdit data check` always does so."""
AGAIN = "Run its `ecdit data prepare` again, which makes what is missing, or copy it again."


class Latents:
    """Provides the images of one prepared data set for training and for validation."""

    def __init__(self, data: DataConfig) -> None:
        """Opens `data.path`. Raises `ConfigError` where it is missing or its fingerprint is not `data.fingerprint`."""
        self.folder = folder = Path(data.path or "")
        self.data = data
        self.index = _index_of(data)
        self._empty = None if self.index.empty_caption is None else self._empty_caption(self.index.empty_caption)
        self._buffers = TextBuffers()
        self._splits: dict[SetSplit, ShardedRows] = {
            split: ShardedRows(folder, self.index, split) for split in ("train", "validation")
        }

    def training(self, images: range, dropped_B: Tensor) -> dict[str, Tensor]:
        """Returns images of an endless stream, with the empty caption or the null class where `dropped_B`."""
        rows = self._splits["train"]
        order_B = shuffled(self.data.seed, np.arange(images.start, images.stop), rows.num_images)
        return self._content(rows, order_B, images, Stream.TRAIN_LATENT, dropped_B, self._buffers)

    def validation(self, images: range) -> dict[str, Tensor]:
        """Returns the first images of the validation split, always with the same latents."""
        order_B = np.arange(images.start, images.stop)
        kept_B = torch.zeros(len(images), dtype=torch.bool)
        rows = self._splits["validation"]
        return self._content(rows, order_B, images, Stream.VALIDATION_LATENT, kept_B, TextBuffers())

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
        """Returns reading rows and drawing them from their posteriors."""
        none_B = torch.zeros(num_images, dtype=torch.bool)
        return {"rows": lambda first: self.training(range(first, first + num_images), none_B)}

    def num_validation_images(self) -> int:
        """Returns the size of the validation split."""
        return self.index.num_images("validation")

    def decoder(self, model: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Opens the VAE that made the latents. Raises `ConfigError` where it is missing or a different one."""
        entry, folder = find_encoder("vae", model or self.index.vae.path)
        if entry.sha256 != self.index.vae.sha256:
            raise ConfigError(f"--vae {entry.path} is not the VAE that made the data set.", "Name that one with --vae.")
        return Autoencoder(folder, device).decode

    def validation_captions(self, numbers: range) -> list[str]:
        """Returns the captions of these images of the validation split as text."""
        return [self._splits["validation"].caption(number) for number in numbers]

    def validation_labels(self, numbers: range) -> list[int]:
        """Returns the classes of these images of the validation split."""
        return [shard.label(inside) for shard, inside in self._splits["validation"].find_all(np.array(numbers))]

    def null_caption(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the empty caption `num` times: features, lengths and pooled features, as in a batch."""
        text_TV, pooled_U = self.empty.text(0)
        text_BLV = torch.zeros(num, self.data.caption_length, text_TV.shape[1], dtype=text_TV.dtype)
        text_BLV[:, : len(text_TV)] = text_TV
        return text_BLV, torch.full((num,), len(text_TV)), pooled_U.expand(num, -1).clone()

    def _content(
        self, rows: ShardedRows, order_B: np.ndarray[Any, np.dtype[np.int64]], images: range, stream: Stream,
        dropped_B: Tensor, buffers: TextBuffers,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Reads a batch in one pass over its rows; `images` are the counters that seed their posterior samples."""
        found = rows.find_all(order_B)
        content = {"index_B": torch.from_numpy(order_B), "pixels_BCHW": self._latents(found, images, stream)}
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

    def _latents(self, found: Sequence[Found], images: range, stream: Stream) -> Tensor:
        """Returns latents drawn from their posteriors, shifted and scaled, as float32 [B, C, H, W]."""
        data = self.data
        noise = normals(data.seed, stream, images, data.channels * data.image_size**2)
        latent_BCHW = torch.from_numpy(noise).view(len(images), data.channels, data.image_size, data.image_size)
        latent_BCHW.mul_(torch.stack([shard.latent_std_NCHW[inside] for shard, inside in found]))
        latent_BCHW.add_(torch.stack([shard.latent_mean_NCHW[inside] for shard, inside in found]))
        return latent_BCHW.sub_(self.index.shift_factor).mul_(self.index.scaling_factor)

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


class ShardedRows:
    """Numbers the images of one split consecutively over its shards."""

    def __init__(self, folder: Path, index: DataSetIndex, split: SetSplit) -> None:
        self.files = [folder / shard.file for shard in index.shards if shard.split == split]
        counts = [shard.num_images for shard in index.shards if shard.split == split]
        self.starts = np.array([0, *accumulate(counts)])
        self.num_images = int(self.starts[-1])
        self._open = lru_cache(MAX_OPEN_SHARDS)(MappedShard)

    def find_all(self, row_B: np.ndarray[Any, np.dtype[np.int64]]) -> list[Found]:
        """Returns the shard of each image, and its index there."""
        place_B = np.searchsorted(self.starts, row_B, side="right") - 1
        inside_B = row_B - self.starts[place_B]
        return [
            (self._open(self.files[place]), inside)
            for place, inside in zip(place_B.tolist(), inside_B.tolist(), strict=True)
        ]

    def caption(self, row: int) -> str:
        """Returns the caption of an image as text."""
        ((shard, inside),) = self.find_all(np.array([row]))
        return shard.caption(inside)


class MappedShard:
    """Maps one file, so that only requested rows are read. Raises `ConfigError` where it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")  # it has no types
            self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self._labels = self._tensors["label_N"].tolist() if "label_N" in self._tensors else None
            self._text_start = self._tensors["text_start_N1"].tolist() if self._labels is None else []
        except FileNotFoundError as error:
            raise ConfigError(f"the data set lacks its shard {path}.", AGAIN) from error
        except (SafetensorError, OSError, KeyError) as error:
            raise ConfigError(f"the shard {path} is damaged.", AGAIN) from error

    @property
    def latent_mean_NCHW(self) -> Tensor:
        """Returns the means of the posteriors of all images of the file in float16, as a read-only view."""
        mean_NCHW: Tensor = self._tensors["latent_mean_NCHW"]
        return mean_NCHW

    @property
    def latent_std_NCHW(self) -> Tensor:
        """Returns the standard deviations of the posteriors in float16, as a read-only view."""
        std_NCHW: Tensor = self._tensors["latent_std_NCHW"]
        return std_NCHW

    def text(self, number: int) -> tuple[Tensor, Tensor]:
        """Returns the features of a caption's tokens without padding, float16 [L', V], and the pooled ones [U]."""
        start, stop = self._text_start[number : number + 2]
        return self._tensors["text_MV"][start:stop], self._tensors["pooled_NU"][number]

    def label(self, number: int) -> int:
        """Returns the class of an image of this file."""
        assert self._labels is not None
        return int(self._labels[number])

    def text_widths(self) -> dict[str, int]:
        """Returns the widths of the features of tokens and of pooled ones, or nothing where images have classes."""
        if self._labels is not None:
            return {}
        text_TV, pooled_U = self.text(0)
        return {"text_width": text_TV.shape[1], "pooled_width": len(pooled_U)}

    def holds(self, index: DataSetIndex, num_images: int, with_latents: bool) -> bool:
        """Says whether its tensors have the types and shapes for `num_images` of a data set, and its text fits."""
        num_tokens, latents = len(self._tensors.get("text_MV", ())), (index.channels, *2 * (index.latent_size,))
        wanted: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {
            "text_MV": (torch.float16, (num_tokens, index.text_width)),
            "text_start_N1": (torch.int64, (num_images + 1,)),
            "pooled_NU": (torch.float16, (num_images, index.pooled_width)),
        }
        if index.class_names is not None:
            wanted = {"label_N": (torch.int64, (num_images,))}
        if with_latents:
            wanted |= {f"latent_{name}_NCHW": (torch.float16, (num_images, *latents)) for name in ("mean", "std")}
        for name, (dtype, shape) in wanted.items():
            tensor = self._tensors.get(name)
            if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
                return False
        if index.class_names is not None:
            label_N = self._tensors["label_N"]
            return bool(((label_N >= 0) & (label_N < len(index.class_names))).all())
        length_N = self._tensors["text_start_N1"].diff()
        ends = self._text_start[0] == 0 and self._text_start[-1] == num_tokens
        longest = index.caption_length or 0
        return bool(ends and (length_N >= 0).all() and (length_N <= longest).all())

    def caption(self, number: int) -> str:
        """Returns the caption of an image of this file as text."""
        start, stop = self._tensors["caption_start_N1"][number : number + 2].tolist()
        return bytes(self._tensors["caption_bytes"][start:stop].tolist()).decode()


Found = tuple[MappedShard, int]
"""The shard of an image, and the number of the image in it."""


def check_length(folder: Path, file: FileEntry) -> None:
    """Raises `ConfigError` where a file is missing or has not the length that the index states."""
    path = folder / file.file
    if not path.is_file():
        raise ConfigError(f"the data set lacks its shard {path}.", AGAIN)
    if path.stat().st_size != file.num_bytes:
        raise ConfigError(
            f"the shard {path} is damaged: it has {path.stat().st_size:,} bytes of {file.num_bytes:,}.", AGAIN
        )


def check_content(folder: Path, file: FileEntry) -> None:
    """Raises `ConfigError` where the content of a file does not match its checksum."""
    if sha256_of_files(folder / file.file) != file.sha256:
        raise ConfigError(f"the shard {folder / file.file} is damaged: its checksum is another one.", AGAIN)


def check_tensors(folder: Path, index: DataSetIndex, file: FileEntry) -> None:
    """Raises `ConfigError` where a file does not hold the tensors that the index states; it reads no image."""
    is_shard = isinstance(file, Shard)
    num_images = file.num_images if isinstance(file, Shard) else 1
    if num_images and not MappedShard(folder / file.file).holds(index, num_images, with_latents=is_shard):
        raise ConfigError(f"the shard {folder / file.file} is damaged: its tensors are not those of the index.", AGAIN)
