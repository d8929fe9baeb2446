"""Which files are images, and which caption belongs to which image, by their names: in a folder and in a tar alike.

An image and its caption have the same name up to their endings: `cat.jpg` and `cat.txt`, `a.b.jpg` and `a.b.txt`; with
`--image-column input.jpg --caption-column outputs.txt`, `cat.input.jpg` and `cat.outputs.txt`. Case does not matter in
endings. Every image is a row, and every caption without an image is one too, so that nothing is dropped unsaid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image

CAPTION_ENDINGS = ("txt", "caption", "text", "json")
"""Looked for in this order; one of them holds the captions of the whole source."""
OTHER_IMAGE_ENDINGS = frozenset({"heic", "heif", "jxl", "svg", "eps", "ps", "wmf", "emf"})
"""Endings of images that are not decoded: such files are listed, rather than not seen."""
UNDECODED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""PIL knows these and does not decode them itself; it gives EPS to Ghostscript, which can read files and run on."""
HIDDEN_NAMES = frozenset({"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "lost+found"})
"""What file managers, network drives and archivers leave behind, in lower case."""


@dataclass(frozen=True)
class Endings:
    """What the names of images and captions end with, without the first dot and in lower case."""

    captions: Sequence[str] = CAPTION_ENDINGS
    image: str | None = None
    """None: every ending of an image."""
    caption_column: str | None = None
    """As it was asked for: an ending, or an ending of JSON and the keys that lead to the caption in it."""

    @classmethod
    def asked(cls, image_column: str | None, caption_column: str | None) -> Endings:
        """What the columns mean: of `a.b.c`, that longest ending is meant which there is, and the rest are keys."""
        image = image_column and image_column.lower()
        if caption_column is None:
            return cls(image=image)
        parts = caption_column.lower().split(".")
        captions = [".".join(parts[:number]) for number in range(len(parts), 0, -1)]
        return cls(captions, image, caption_column)

    def keys(self, chosen: str) -> tuple[str, ...]:
        """What leads to the caption in a file with the chosen ending; empty where the whole text is the caption."""
        rest = (self.caption_column or "")[len(chosen) + 1 :]
        return tuple(rest.split(".")) if rest else ()

    def image_stem(self, name: str) -> str:
        """The name of an image without its ending; empty where `name` is not that of an image."""
        if self.image is not None:
            return (stem_of(name, [self.image]) or ("", ""))[0]
        stem, _, ending = name.rpartition(".")
        known = ending.lower() in decoded_endings() or ending.lower() in OTHER_IMAGE_ENDINGS
        return stem if known else ""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and its captions by ending, as places among the names; with `problem`, why it cannot be used.

    `is_image`: its ending says so.
    """

    place: int
    captions: dict[str, int]
    problem: str = ""
    is_image: bool = True


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that are decoded, whatever the name of the file says."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in UNDECODED_FORMATS)


@cache
def decoded_endings() -> frozenset[str]:
    """The endings of images that PIL decodes, in lower case and without the dot."""
    known = Image.registered_extensions().items()
    return frozenset(suffix[1:].lower() for suffix, kind in known if kind in image_formats())


def is_hidden(name: str) -> bool:
    """Whether a path, relative to the source, leads to or through what a program made for itself."""
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part.lower() in HIDDEN_NAMES for part in parts)


def stem_of(name: str, endings: Iterable[str]) -> tuple[str, str] | None:
    """The name without its ending, and the first of `endings` that it has; None where it has none of them."""
    lower = name.lower()
    for ending in endings:
        if lower.endswith(f".{ending}"):
            return name[: -len(ending) - 1], ending
    return None


def pair(names: Sequence[str], endings: Endings) -> list[Sample]:
    """A sample for every image, and one for every caption without an image, in the order of `names`."""
    images: dict[str, list[int]] = {}
    captions: dict[str, dict[str, int]] = {}
    others: dict[str, int] = {}
    for place, name in enumerate(names):
        if is_hidden(name):
            continue
        if stem := endings.image_stem(name):
            images.setdefault(stem, []).append(place)
        elif found := stem_of(name, endings.captions):
            captions.setdefault(found[0], {}).setdefault(found[1], place)
        else:
            others.setdefault(name.rpartition(".")[0], place)
    samples = [sample for stem, places in images.items() for sample in _of_stem(names, places, captions.get(stem, {}))]
    for stem in captions.keys() - images.keys():
        samples.append(_without_ending(captions[stem], others.get(stem)))
    return sorted(samples, key=lambda sample: sample.place)


def choose_ending(samples: Iterable[Sample], endings: Endings) -> str | None:
    """The first of the captions' endings that an image has; None where no image has a caption."""
    found = {ending for sample in samples if sample.is_image for ending in sample.captions}
    return next((ending for ending in endings.captions if ending in found), None)


def with_ending(samples: Iterable[Sample], chosen: str) -> list[Sample]:
    """`samples` without the captions that have neither an image nor the chosen ending: notes of other things."""
    return [sample for sample in samples if sample.is_image or chosen in sample.captions]


def _of_stem(names: Sequence[str], places: Sequence[int], captions: dict[str, int]) -> Iterator[Sample]:
    """One image has the caption, if possible one that can be decoded; another with its name may be its mask."""
    first, *others = sorted(places, key=lambda place: names[place].rpartition(".")[2].lower() not in decoded_endings())
    yield Sample(first, captions)
    for place in others:
        yield Sample(place, captions, f"the caption belongs to {names[first].rpartition('/')[2]}, of the same name")


def _without_ending(captions: dict[str, int], other: int | None) -> Sample:
    """A file that has a caption may be an image whatever its ending says: who decodes it will see."""
    if other is not None:
        return Sample(other, captions, is_image=False)
    return Sample(next(iter(captions.values())), captions, "a caption without an image", is_image=False)
