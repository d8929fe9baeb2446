"""Latents and text features of a prepared data set, read from memory-mapped shards.

Nothing is loaded ahead: a batch copies the rows it needs out of the mapped files, so a data set may be larger than
memory, and every process maps the same files. The order of an epoch is a function of (`data.seed`, epoch), and the
latent of an image is drawn anew from its posterior in every epoch, by (`data.seed`, epoch, image): any process finds
any image of the stream by itself, whatever the world size. The format is described in `experiments.config.data_set`.

Legend: B images of a batch, C channels, H rows, W columns, L caption length, V, U widths of text features (tokens,
pooled).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.config.data_set import DataSetIndex, FileEntry, SetSplit, read_index
from experiments.config.schema import DataConfig
from experiments.data.counter import Stream, normals
from experiments.data.order import shuffled
from experiments.errors import ConfigError

MAX_OPEN_SHARDS = 1024
"""Mapped at a time; the operating system allows about 65,000 maps to a process."""
VERIFIED_BYTES = 1 << 30
"""Up to this size a data set is read and compared with its checksums before training; `ecdit data check`
always does."""
AGAIN = "Run its `ecdit data prepare` again, which makes what is missing, or copy it again."


class LatentImages:
    """The images of one data set, for training and for validation (`loader.Images`)."""

    def __init__(self, folder: Path, data: DataConfig) -> None:
        """`ConfigError` where the folder holds no data set, or another one than `data.fingerprint`."""
        self.folder, self.data = folder, data
        self.index = read_index(folder)
        if self.index.fingerprint != data.fingerprint:
            raise ConfigError(
                f"data.path={folder} is another data set (fingerprint {self.index.fingerprint}) than the model's "
                f"({data.fingerprint}).",
                "Name the data set that the model was trained on, or train another model.",
            )
        self.empty = self._empty_caption()
        self._splits: dict[SetSplit, ShardedRows] = {
            split: ShardedRows(folder, self.index, split) for split in ("train", "validation")
        }

    def training(self, images: range, dropped_B: Tensor) -> dict[str, Tensor]:
        """Images at these positions of a stream without end; the empty caption where `dropped_B`."""
        rows = self._splits["train"]
        order_B = shuffled(self.data.seed, np.arange(images.start, images.stop), rows.num_images)
        return self._content(rows, order_B, images, Stream.TRAIN_LATENT, dropped_B)

    def validation(self, images: range) -> dict[str, Tensor]:
        """The first images of the validation split, always with the same latents."""
        order_B = np.arange(images.start, images.stop)
        kept_B = torch.zeros(len(images), dtype=torch.bool)
        return self._content(self._splits["validation"], order_B, images, Stream.VALIDATION_LATENT, kept_B)

    def validation_captions(self, numbers: range) -> list[str]:
        """In words, of these images of the validation split."""
        return [self._splits["validation"].caption(number) for number in numbers]

    def null_caption(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """The empty caption `num` times: features, lengths and pooled features, as a batch has them."""
        text_TV, pooled_U = self.empty.text(0)
        text_BLV = torch.zeros(num, self.data.caption_length, self.index.text_width, dtype=text_TV.dtype)
        text_BLV[:, : len(text_TV)] = text_TV
        return text_BLV, torch.full((num,), len(text_TV)), pooled_U.expand(num, -1).clone()

    def _content(
        self, rows: ShardedRows, order_B: np.ndarray[Any, np.dtype[np.int64]], images: range, stream: Stream,
        dropped_B: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """One pass over the rows of a batch; `images` are the counters of their posteriors."""
        data, index, size = self.data, self.index, len(images)
        pixels_BCHW = torch.from_numpy(normals(data.seed, stream, images, data.channels * data.image_size**2))
        pixels_BCHW = pixels_BCHW.view(size, data.channels, data.image_size, data.image_size)
        text_BLV = torch.zeros(size, data.caption_length, index.text_width, dtype=torch.float16)
        length_B, pooled_BU = torch.empty(size, dtype=torch.int64), torch.empty(size, index.pooled_width).half()
        for place, row in enumerate(order_B.tolist()):
            shard, inside = rows.find(row)
            mean_CHW, std_CHW = shard.latent(inside)
            pixels_BCHW[place].mul_(std_CHW).add_(mean_CHW)
            text_TV, pooled_U = self.empty.text(0) if dropped_B[place] else shard.text(inside)
            text_BLV[place, : len(text_TV)] = text_TV
            length_B[place], pooled_BU[place] = len(text_TV), pooled_U
        pixels_BCHW.sub_(index.shift_factor).mul_(index.scaling_factor)
        return {
            "index_B": torch.from_numpy(order_B),
            "pixels_BCHW": pixels_BCHW,
            "text_BLV": text_BLV,
            "text_length_B": length_B,
            "pooled_BU": pooled_BU,
        }

    def _empty_caption(self) -> MappedShard:
        check_length(self.folder, self.index.empty_caption)
        return MappedShard(self.folder / self.index.empty_caption.file)


class ShardedRows:
    """The images of one split, numbered through its shards."""

    def __init__(self, folder: Path, index: DataSetIndex, split: SetSplit) -> None:
        self.files = [folder / shard.file for shard in index.shards if shard.split == split]
        counts = [shard.num_images for shard in index.shards if shard.split == split]
        self.starts = np.array([0, *accumulate(counts)])
        self.num_images = int(self.starts[-1])
        self._open = lru_cache(MAX_OPEN_SHARDS)(MappedShard)

    def find(self, row: int) -> tuple[MappedShard, int]:
        """The shard of an image, and its number there."""
        place = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self._open(self.files[place]), row - int(self.starts[place])

    def caption(self, row: int) -> str:
        """In words."""
        shard, inside = self.find(row)
        return shard.caption(inside)


class MappedShard:
    """One file, mapped: only the rows that are asked for are read. A `ConfigError` where it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")  # it has no types
            self._slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self._text_start = file.get_tensor("text_start_N1").tolist()
        except FileNotFoundError as error:
            raise ConfigError(f"the data set lacks its shard {path}.", AGAIN) from error
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"the shard {path} is damaged.", AGAIN) from error

    def latent(self, number: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float16 [C, H, W]."""
        return self._slices["latent_mean_NCHW"][number], self._slices["latent_std_NCHW"][number]

    def text(self, number: int) -> tuple[Tensor, Tensor]:
        """Features of the tokens that the caption has, float16 [L', V], and pooled ones [U]."""
        start, stop = self._text_start[number : number + 2]
        return self._slices["text_MV"][start:stop], self._slices["pooled_NU"][number]

    def caption(self, number: int) -> str:
        """In words."""
        start, stop = self._slices["caption_start_N1"][number : number + 2].tolist()
        return bytes(self._slices["caption_bytes"][start:stop].tolist()).decode()


def check_data_set(folder: Path, data: DataConfig) -> None:
    """Before a run begins: the data set is the model's, and its files are whole. Raises `ConfigError`."""
    index = LatentImages(folder, data).index
    verify = sum(file.num_bytes for file in index.files()) <= VERIFIED_BYTES
    for file in index.files():
        check_length(folder, file)
        if verify:
            check_content(folder, file)


def check_length(folder: Path, file: FileEntry) -> None:
    """A `ConfigError` where a file is missing, or not as long as it was written."""
    path = folder / file.file
    if not path.is_file():
        raise ConfigError(f"the data set lacks its shard {path}.", AGAIN)
    if path.stat().st_size != file.num_bytes:
        raise ConfigError(
            f"the shard {path} is damaged: it has {path.stat().st_size:,} bytes of {file.num_bytes:,}.", AGAIN
        )


def check_content(folder: Path, file: FileEntry) -> None:
    """A `ConfigError` where a file is not what was written."""
    if file_sha256([folder / file.file]) != file.sha256:
        raise ConfigError(f"the shard {folder / file.file} is damaged: its checksum is another one.", AGAIN)


def file_sha256(paths: Sequence[Path]) -> str:
    """Of the files' contents, one after the other, as hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
