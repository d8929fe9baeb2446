"""Turns rows of a source into the tensors of one shard: decodes, resizes, crops and encodes them.

What a shard holds depends on the rows and the networks alone, not on who makes it or what was made before: images go
through the networks in the same batches every time. A row that cannot be decoded, or has no caption, is left out and
listed with its reason.

Legend: B images of a batch, N of a shard, M text tokens of a shard, V, U widths of T5 and CLIP.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from experiments.data.prepare.pairing import image_formats
from experiments.data.prepare.source import SourceRows
from experiments.data.prepare.source_rows import UnusableRowError
from experiments.text import first_line, printable, shortened

DECODING_THREADS = 4
MAX_PIXELS = 2**26
"""The largest image that is decoded: 8192 x 8192. Its header says how large it is before anything is decoded."""
NO_CAPTION, NO_IMAGE = "no caption", "not a file of an image"
LISTED_CHARACTERS = 200
DAMAGED = (
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError, EOFError, RuntimeError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""The errors that PIL's decoders raise for files that are no image, are cut short, or were made to break them."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `MAX_PIXELS` is stricter


@dataclass(frozen=True)
class LeftOutRow:
    """Describes a row that is left out of the data set, and why."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """Holds a usable row: pixels as float32 [3, H, W] in [-1, 1], and the SHA-256 of file and caption."""

    row: int
    pixels_CHW: Tensor
    caption: str
    sha256: bytes


@dataclass(frozen=True)
class EncodedTexts:
    """Holds what is stored of the captions or labels of a batch, by name.

    `num_cut_t5` and `num_cut_clip` captions had more tokens than the encoder was given; None for labels.
    """

    tensors: dict[str, Tensor]
    num_cut_t5: int | None = None
    num_cut_clip: int | None = None


class EncodesTexts(Protocol):
    """Encodes the captions of images, or numbers their classes."""

    def encode(self, captions: Sequence[str]) -> EncodedTexts:
        """Returns what is stored of them, in their order."""


class EncodesImages(Protocol):
    """Encodes images to posteriors of latents, as `Autoencoder` does."""

    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of the posterior, float16 [B, C, H, W]."""


@dataclass(frozen=True)
class EncodedRows:
    """Holds a shard's tensors by name, and the rows left out. `source_sha256` hashes all its files and captions."""

    tensors: dict[str, Tensor]
    left_out: list[LeftOutRow]
    source_sha256: str
    num_cut_t5: int | None = None
    num_cut_clip: int | None = None


def encode_rows(
    source: SourceRows,
    rows: Sequence[int],
    image_size: int,
    batch_images: int,
    vae: EncodesImages,
    text: EncodesTexts,
    on_rows: Callable[[int], None] = lambda num_rows: None,
) -> EncodedRows:
    """Encodes `rows` in their order to a shard's content; `on_rows` is called with the number of rows of each batch."""
    left_out: list[LeftOutRow] = []
    parts: list[dict[str, Tensor]] = []
    texts: list[EncodedTexts] = []
    digest = hashlib.sha256()
    with ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode") as threads:
        for first in range(0, len(rows), batch_images):
            here = rows[first : first + batch_images]
            answers = list(threads.map(lambda row: load_row(source, row, image_size), here))
            left_out += [answer for answer in answers if isinstance(answer, LeftOutRow)]
            loaded = [answer for answer in answers if isinstance(answer, Loaded)]
            if loaded:
                texts.append(text.encode([one.caption for one in loaded]))
                parts.append(texts[-1].tensors | _image_tensors(loaded, *vae.encode(_pixels(loaded))))
                digest.update(b"".join(one.sha256 for one in loaded))
            on_rows(len(here))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    for name in ("text", "caption"):
        if f"{name}_length_N" in tensors:
            tensors[f"{name}_start_N1"] = _starts(tensors.pop(f"{name}_length_N"))
    cut = _total([one.num_cut_t5 for one in texts]), _total([one.num_cut_clip for one in texts])
    return EncodedRows(tensors, left_out, digest.hexdigest(), *cut)


def encode_empty_caption(text: EncodesTexts) -> dict[str, Tensor]:
    """Returns the features of the empty caption's file, which are those of a shard of one image."""
    encoded = text.encode([""]).tensors
    start_N1 = _starts(encoded["text_length_N"])
    return {"text_MV": encoded["text_MV"], "text_start_N1": start_N1, "pooled_NU": encoded["pooled_NU"]}


def load_row(source: SourceRows, row: int, image_size: int) -> Loaded | LeftOutRow:
    """Reads and decodes one row; returns `LeftOutRow` where it cannot be used."""
    name = f"row {row}"
    try:
        stored = source.read(row)
        name = stored.name
        if stored.caption is None:
            return _left_out(row, name, NO_CAPTION)
        pixels_CHW = decode(stored.content, image_size)
    except UnusableRowError as error:
        return _left_out(row, error.name, error.reason)
    except UnidentifiedImageError:  # PIL's own words hold an address of memory
        return _left_out(row, name, NO_IMAGE)
    except DAMAGED as error:
        return _left_out(row, name, first_line(error))
    digest = hashlib.sha256(stored.content + b"\0" + stored.caption.encode()).digest()
    return Loaded(row, pixels_CHW, stored.caption, digest)


def _left_out(row: int, name: str, reason: str) -> LeftOutRow:
    """Returns a `LeftOutRow` whose name and reason, which contain foreign text, are short and printable."""
    return LeftOutRow(row, *(shortened(printable(text), LISTED_CHARACTERS) for text in (name, reason)))


def decode(content: bytes, image_size: int) -> Tensor:
    """Returns an image as float32 [3, H, W] in [-1, 1]: rotated upright, resized by its short side, center-cropped.

    Transparency becomes white. Images are resized bicubically with antialiasing, as ADM and DiT prepare ImageNet.
    Raises `ValueError` for more than `MAX_PIXELS`.
    """
    with Image.open(io.BytesIO(content), formats=image_formats()) as opened:
        # The header gives the size before anything is decoded, so a small file cannot fill the memory.
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(
                f"it has {opened.width * opened.height / 1e6:,.1f} megapixels, and at most {MAX_PIXELS / 1e6:.1f} are "
                "decoded"
            )
        image = ImageOps.exif_transpose(opened)
        if "A" in image.getbands() or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        fitted = ImageOps.fit(_in_eight_bits(image).convert("RGB"), (image_size, image_size), Image.Resampling.BICUBIC)
    pixels_HWC = np.asarray(fitted, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Keeps the high bytes of 16-bit grey, which PIL would turn white. Raises `ValueError` for unknown pixel ranges."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of the kind {image.mode}, whose range is not known")
    return image


def _pixels(loaded: Sequence[Loaded]) -> Tensor:
    return torch.stack([one.pixels_CHW for one in loaded])


def _image_tensors(loaded: Sequence[Loaded], mean_BCHW: Tensor, std_BCHW: Tensor) -> dict[str, Tensor]:
    """Returns what is stored of the images of one batch."""
    rows_N = torch.tensor([one.row for one in loaded])
    return {"latent_mean_NCHW": mean_BCHW, "latent_std_NCHW": std_BCHW, "row_N": rows_N}


def _total(counts: Sequence[int | None]) -> int | None:
    given = [count for count in counts if count is not None]
    return sum(given) if len(given) == len(counts) else None


def _starts(length_N: Tensor) -> Tensor:
    return torch.tensor([0, *accumulate(length_N.tolist())])
