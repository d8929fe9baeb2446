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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from experiments.data.prepare.pairing import image_formats
from experiments.data.prepare.source_rows import UnusableRowError
from experiments.data.prepare.text_columns import names_side
from experiments.text import first_line, printable, shortened

if TYPE_CHECKING:
    # Training imports this module, too. What reads sources imports pyarrow, whose threads would forbid a sweep to fork.
    from experiments.data.prepare.source import SourceRows

DECODING_THREADS = 4
MAX_PIXELS = 2**26
"""The largest image that is decoded: 8192 x 8192. Its header says how large it is before anything is decoded."""
PNG_GREY_FACTORS = {"L;2": 85, "L;4": 17}
"""The factors by which PIL scales grey of 2 and 4 bits to eight."""
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
    name: str


@dataclass(frozen=True)
class EncodedTexts:
    """Holds what is stored of the captions or labels of a batch, by name.

    `num_cut` says for each encoder how many captions had more tokens than it was given; it is empty for labels.
    """

    tensors: dict[str, Tensor]
    num_cut: Mapping[str, int] = field(default_factory=dict)


class EncodesTexts(Protocol):
    """Encodes the captions of images, or numbers their classes."""

    counted: Sequence[str]
    """The encoders that report how many captions were too long for them."""

    def problem(self, caption: str) -> str | None:
        """Returns why an image with this text is left out, or None."""

    def encode(self, captions: Sequence[str]) -> EncodedTexts:
        """Returns what is stored of them, in their order."""


class EncodesImages(Protocol):
    """Turns images into what is stored of them; `image_forms.py` has the forms."""

    def encode(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Returns the tensors of images in [-1, 1] by name."""


@dataclass(frozen=True)
class EncodedRows:
    """Holds a shard's tensors by name, and the rows left out. `source_sha256` hashes all its files and captions."""

    tensors: dict[str, Tensor]
    left_out: list[LeftOutRow]
    source_sha256: str
    num_cut: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizing:
    """Says how images are brought to size: the side, the colour behind transparency, and the kernel of resizing."""

    image_size: int
    background: str = "white"
    resampling: Image.Resampling = Image.Resampling.BICUBIC


def encode_rows(
    source: SourceRows,
    rows: Sequence[int],
    sizing: Sizing,
    batch_images: int,
    images: EncodesImages,
    text: EncodesTexts,
    marks_flips: bool = False,
    on_rows: Callable[[int], None] = lambda num_rows: None,
) -> EncodedRows:
    """Encodes `rows` in their order to a shard's content; `on_rows` is called with the number of rows of each batch.

    With `marks_flips` it holds which images may be mirrored.
    """
    left_out: list[LeftOutRow] = []
    parts: list[dict[str, Tensor]] = []
    texts: list[EncodedTexts] = []
    digest = hashlib.sha256()
    with ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode") as threads:
        for first in range(0, len(rows), batch_images):
            here = rows[first : first + batch_images]
            answers = list(threads.map(lambda row: _usable(load_row(source, row, sizing), text), here))
            left_out += [answer for answer in answers if isinstance(answer, LeftOutRow)]
            loaded = [answer for answer in answers if isinstance(answer, Loaded)]
            if loaded:
                texts.append(text.encode([one.caption for one in loaded]))
                parts.append(texts[-1].tensors | images.encode(_pixels(loaded)) | _of_rows(loaded, marks_flips))
                digest.update(b"".join(one.sha256 for one in loaded))
            on_rows(len(here))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    for name in ("text", "caption"):
        if f"{name}_length_N" in tensors:
            tensors[f"{name}_start_N1"] = _starts(tensors.pop(f"{name}_length_N"))
    cut = {name: sum(one.num_cut[name] for one in texts) for name in text.counted}
    return EncodedRows(tensors, left_out, digest.hexdigest(), cut)


def encode_empty_caption(text: EncodesTexts) -> dict[str, Tensor]:
    """Returns the features of the empty caption's file, which are those of a shard of one image."""
    encoded = text.encode([""]).tensors
    start_N1 = _starts(encoded["text_length_N"])
    return {"text_MV": encoded["text_MV"], "text_start_N1": start_N1, "pooled_NU": encoded["pooled_NU"]}


def caption_tensors(captions: Sequence[str]) -> dict[str, Tensor]:
    """Returns captions as bytes of UTF-8, with their lengths."""
    written = [caption.encode() for caption in captions]
    return {
        "caption_bytes": torch.tensor(list(b"".join(written)), dtype=torch.uint8),
        "caption_length_N": torch.tensor([len(caption) for caption in written]),
    }


def load_row(source: SourceRows, row: int, sizing: Sizing) -> Loaded | LeftOutRow:
    """Reads and decodes one row; returns `LeftOutRow` where it cannot be used."""
    name = f"row {row}"
    try:
        stored = source.read(row)
        name = stored.name
        if stored.caption is None:
            return _left_out(row, name, stored.elsewhere or NO_CAPTION)
        pixels_CHW = decode(stored.content, sizing)
    except UnusableRowError as error:
        return _left_out(row, error.name, error.reason)
    except UnidentifiedImageError:  # PIL's own words hold an address of memory
        return _left_out(row, name, NO_IMAGE)
    except DAMAGED as error:
        return _left_out(row, name, first_line(error))
    digest = hashlib.sha256(stored.content + b"\0" + stored.caption.encode()).digest()
    return Loaded(row, pixels_CHW, stored.caption, digest, name)


def _usable(answer: Loaded | LeftOutRow, text: EncodesTexts) -> Loaded | LeftOutRow:
    """Leaves out a row whose text cannot be encoded."""
    problem = text.problem(answer.caption) if isinstance(answer, Loaded) else None
    return answer if problem is None or isinstance(answer, LeftOutRow) else _left_out(answer.row, answer.name, problem)


def _left_out(row: int, name: str, reason: str) -> LeftOutRow:
    """Returns a `LeftOutRow` whose name and reason, which contain foreign text, are short and printable."""
    return LeftOutRow(row, *(shortened(printable(text), LISTED_CHARACTERS) for text in (name, reason)))


def decode(content: bytes, sizing: Sizing) -> Tensor:
    """Returns an image as float32 [3, H, W] in [-1, 1]: rotated upright, resized by its short side, center-cropped.

    Transparency becomes the background. By default images are resized bicubically with antialiasing, as ADM and DiT
    prepare ImageNet. Raises `ValueError` for more than `MAX_PIXELS`.
    """
    with Image.open(io.BytesIO(content), formats=image_formats()) as opened:
        # The header gives the size before anything is decoded, so a small file cannot fill the memory.
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(
                f"it has {opened.width * opened.height / 1e6:,.1f} megapixels, and at most {MAX_PIXELS / 1e6:.1f} are "
                "decoded"
            )
        _scale_transparent_color(opened)
        image = _in_eight_bits(_upright(opened))
        if "A" in image.getbands() or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, sizing.background), image.convert("RGBA"))
        fitted = ImageOps.fit(image.convert("RGB"), 2 * (sizing.image_size,), sizing.resampling)
    pixels_HWC = np.asarray(fitted, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def _upright(opened: Image.Image) -> Image.Image:
    """Returns an image rotated as its EXIF data say; where they cannot be read they say nothing of an orientation."""
    opened.load()  # EXIF data may stand behind the pixels
    try:
        opened.getexif()
    except DAMAGED:
        return opened
    return ImageOps.exif_transpose(opened)


def _scale_transparent_color(opened: Image.Image) -> None:
    """Converts the transparent colour of a PNG, which PIL leaves as it is stored, to the eight bits of its pixels.

    It is called before pixels are read, because the depth of the file is not known afterwards.
    """
    color, tiles = opened.info.get("transparency"), getattr(opened, "tile", None)
    if opened.format != "PNG" or color is None or not tiles:
        return
    if (depth := tiles[0][3]) in PNG_GREY_FACTORS:
        opened.info["transparency"] = color * PNG_GREY_FACTORS[depth]
    elif depth == "RGB;16B":
        opened.info["transparency"] = tuple(value >> 8 for value in color)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Keeps the high bytes of 16-bit grey, which PIL would turn white, and makes its transparent grey a channel.

    Raises `ValueError` for unknown pixel ranges.
    """
    if image.mode.startswith("I;16"):
        grey_HW = np.asarray(image)
        grey = Image.fromarray((grey_HW >> 8).astype(np.uint8))
        if "transparency" in image.info:
            grey.putalpha(Image.fromarray(np.where(grey_HW == image.info["transparency"], 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of the kind {image.mode}, whose range is not known")
    return image


def _pixels(loaded: Sequence[Loaded]) -> Tensor:
    return torch.stack([one.pixels_CHW for one in loaded])


def _of_rows(loaded: Sequence[Loaded], marks_flips: bool) -> dict[str, Tensor]:
    """Returns the rows of the images of one batch, and which of them may be mirrored where that is asked for."""
    flips = {"flips_N": torch.tensor([not names_side(one.caption) for one in loaded])} if marks_flips else {}
    return {"row_N": torch.tensor([one.row for one in loaded]), **flips}


def _starts(length_N: Tensor) -> Tensor:
    return torch.tensor([0, *accumulate(length_N.tolist())])
