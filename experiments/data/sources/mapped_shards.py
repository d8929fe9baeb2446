"""Maps the shards of a prepared data set into memory, finds images in them, and checks files against the index.

`experiments.config.prepared_set` describes the format.

Legend: N images of a shard, C channels, H rows, W columns, T' tokens of a caption, V, U widths of text features
(tokens, pooled).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.config.prepared_set import DataSetIndex, FileEntry, SetSplit, Shard
from experiments.errors import ConfigError
from experiments.inputs import sha256_of_files

MAX_OPEN_SHARDS = 32_768
"""The most shards that are mapped at a time. Linux allows a process 65,530 maps; mapping one again takes 0.1 ms."""
AGAIN = "Run its `ecdit data prepare` again, which makes what is missing, or copy it again."
Wanted = dict[str, tuple[torch.dtype, tuple[int | None, ...]]]
"""The type and the shape that tensors of a file must have, by their names."""


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

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor of all images of the file by its name, as a read-only view."""
        tensor: Tensor = self._tensors[name]
        return tensor

    @property
    def images(self) -> Tensor:
        """Returns the means of the posteriors, or the pixels, of all images of the file."""
        return self.tensor("pixels_NCHW" if "pixels_NCHW" in self._tensors else "latent_mean_NCHW")

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

    def holds(self, index: DataSetIndex, num_images: int, with_images: bool) -> bool:
        """Says whether its tensors have the types and shapes for `num_images` of a data set, and its text fits."""
        num_tokens = len(self._tensors.get("text_MV", ()))
        wanted: Wanted = {
            "text_MV": (torch.float16, (num_tokens, index.text_width)),
            "text_start_N1": (torch.int64, (num_images + 1,)),
            "pooled_NU": (torch.float16, (num_images, index.pooled_width)),
        }
        if index.class_names is not None:
            wanted = {"label_N": (torch.int64, (num_images,))}
        if with_images:
            wanted |= _tensors_of_images(index, num_images)
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


def _tensors_of_images(index: DataSetIndex, num_images: int) -> Wanted:
    """Returns what a shard must hold of its images: latents, or pixels and whether they may be mirrored."""
    shape = (num_images, index.channels, index.latent_size, index.latent_size)
    if index.images == "latents":
        return {f"latent_{name}_NCHW": (torch.float16, shape) for name in ("mean", "std")}
    flips: Wanted = {"flips_N": (torch.bool, (num_images,))} if index.flips else {}
    return {"pixels_NCHW": (torch.uint8, shape), **flips}


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
    """Raises `ConfigError` where a file cannot be read, or its content does not match its checksum."""
    try:
        sha256 = sha256_of_files(folder / file.file)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"the shard {folder / file.file} cannot be read: {reason}.", AGAIN) from error
    if sha256 != file.sha256:
        raise ConfigError(f"the shard {folder / file.file} is damaged: its checksum is another one.", AGAIN)


def check_tensors(folder: Path, index: DataSetIndex, file: FileEntry) -> None:
    """Raises `ConfigError` where a file does not hold the tensors that the index states; it reads no image."""
    is_shard = isinstance(file, Shard)
    num_images = file.num_images if isinstance(file, Shard) else 1
    if num_images and not MappedShard(folder / file.file).holds(index, num_images, with_images=is_shard):
        raise ConfigError(f"the shard {folder / file.file} is damaged: its tensors are not those of the index.", AGAIN)
