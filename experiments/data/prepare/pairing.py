"""Pairs images with captions by their file names, in folders and in tars alike.

An image and its caption have the same name up to their endings: `cat.jpg` and `cat.txt`, `a.b.jpg` and `a.b.txt`. With
`--image-column input.jpg --caption-column outputs.txt` they are `cat.input.jpg` and `cat.outputs.txt`. The case of
endings does not matter. Captions without an image become rows too, and so do images with two captions, or with one of
another ending than is used: each has its reason, so that nothing is dropped without a report.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from PIL import Image

from experiments.data.prepare.source_rows import find_json_key
from experiments.data.prepare.text_columns import CAPTIONS, TextColumn

OTHER_IMAGE_ENDINGS = frozenset({"heic", "heif", "jxl", "svg", "eps", "ps", "wmf", "emf"})
"""Endings of images that cannot be decoded. Such files become rows that are reported, rather than ignored."""
UNDECODED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that PIL does not decode itself. It runs Ghostscript for EPS, which can read other files and never end."""
HIDDEN_NAMES = frozenset({"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "lost+found"})
"""Names, in lower case, of what file managers, network drives and archivers leave behind."""


@dataclass(frozen=True)
class Endings:
    """Holds the endings of image and caption files, without the first dot and in lower case."""

    captions: Sequence[str] = CAPTIONS.endings
    image: str | None = None
    """The ending of images; None stands for every known ending of an image."""
    caption_column: str | None = None
    """The caption column that the user asked for: an ending, or a JSON ending and the keys that lead to the caption."""
    text: TextColumn = CAPTIONS
    """Says whether the files hold captions or labels."""

    @classmethod
    def asked(cls, image_column: str | None, caption_column: str | None, text: TextColumn = CAPTIONS) -> Endings:
        """Interprets the user's columns. In `a.b.c`, the longest ending that files have counts; the rest are keys."""
        image = image_column and image_column.lower()
        if caption_column is None:
            return cls(text.endings, image, text=text)
        parts = caption_column.lower().split(".")
        captions = [".".join(parts[:number]) for number in range(len(parts), 0, -1)]
        return cls(captions, image, caption_column, text)

    def keys(self, chosen: str) -> tuple[str, ...]:
        """Returns the keys that lead to the caption in a file with the chosen ending; none if all its text is it."""
        rest = (self.caption_column or "")[len(chosen) + 1 :]
        return tuple(rest.split(".")) if rest else ()

    def image_stem(self, name: str) -> str:
        """Returns the name of an image without its ending, or an empty string where `name` is not an image's."""
        if self.image is not None:
            return (stem_of(name, [self.image]) or ("", ""))[0]
        stem, _, ending = name.rpartition(".")
        known = ending.lower() in decoded_endings() or ending.lower() in OTHER_IMAGE_ENDINGS
        return stem if known else ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds an image and its captions by ending, as indices into the list of names.

    `problem` says why the sample cannot be used; it is empty for a usable one. `is_image` says whether the file at
    `place` has the ending of an image. `doubled` has the endings that several caption files have.
    """

    place: int
    captions: dict[str, int]
    problem: str = ""
    is_image: bool = True
    doubled: frozenset[str] = frozenset()

    def problem_with(self, chosen: str, text: TextColumn) -> str:
        """Returns why the sample cannot be used where `text` has the ending `chosen`; an empty string if it can."""
        return self.problem or (two_captions(chosen, text) if chosen in self.doubled else "")

    def elsewhere(self, chosen: str) -> str:
        """Returns why the sample has no caption, where it has one of another ending than `chosen`; else nothing."""
        is_elsewhere = self.captions and chosen not in self.captions
        return caption_elsewhere(chosen, next(iter(self.captions))) if is_elsewhere else ""


@cache
def image_formats() -> tuple[str, ...]:
    """Returns the formats that are decoded. A file's format is told by its content, not by its name."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in UNDECODED_FORMATS)


@cache
def decoded_endings() -> frozenset[str]:
    """Returns the endings of images that PIL decodes, in lower case and without the dot."""
    known = Image.registered_extensions().items()
    return frozenset(suffix[1:].lower() for suffix, kind in known if kind in image_formats())


def is_image(content: bytes) -> bool:
    """Says whether bytes begin as those of an image that can be decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=image_formats()):
            return True
    except Exception:  # the readers of the formats raise many classes for other bytes
        return False


def is_hidden(name: str) -> bool:
    """Says whether a path, relative to the source, has a part that starts with a dot or is in `HIDDEN_NAMES`."""
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part.lower() in HIDDEN_NAMES for part in parts)


def stem_of(name: str, endings: Iterable[str]) -> tuple[str, str] | None:
    """Returns the name without its ending, and the first of `endings` that it has; None where it has none of them."""
    lower = name.lower()
    for ending in endings:
        if lower.endswith(f".{ending}"):
            return name[: -len(ending) - 1], ending
    return None


def two_captions(ending: str, text: TextColumn) -> str:
    """Returns the problem of an image beside which two files have the ending of captions, such as cat.txt, cat.TXT."""
    return f"it has two {text.what} with the ending .{ending}"


def caption_elsewhere(chosen: str, other: str) -> str:
    """Returns why an image has no caption, although it has one of another ending than is used."""
    return f"it has no .{chosen}, which is the ending that is used, but .{other}"


def pair(names: Sequence[str], endings: Endings) -> list[Sample]:
    """Returns a sample for every image and for every caption without an image, in the order of `names`."""
    images: dict[str, list[int]] = {}
    captions: dict[str, dict[str, int]] = {}
    doubled: dict[str, frozenset[str]] = {}
    others: dict[str, int] = {}
    for place, name in enumerate(names):
        if is_hidden(name):
            continue
        if stem := endings.image_stem(name):
            images.setdefault(stem, []).append(place)
        elif found := stem_of(name, endings.captions):
            stem, ending = found
            if captions.setdefault(stem, {}).setdefault(ending, place) != place:
                doubled[stem] = doubled.get(stem, frozenset()) | {ending}
        else:
            others.setdefault(name.rpartition(".")[0], place)
    samples: list[Sample] = []
    for stem, places in images.items():
        samples += _of_stem(names, places, captions.get(stem, {}), doubled.get(stem, frozenset()), endings.text)
    for stem in captions.keys() - images.keys():
        samples.append(_without_ending(captions[stem], others.get(stem), doubled.get(stem, frozenset()), endings.text))
    return sorted(samples, key=lambda sample: sample.place)


def count_endings(samples: Iterable[Sample]) -> Counter[str]:
    """Counts the images beside which there is a caption file of each ending."""
    return Counter(ending for sample in samples if sample.is_image for ending in sample.captions)


def choose_ending(
    counts: Mapping[str, int], endings: Endings, json_files: Callable[[], Iterable[bytes]], num_sampled: int
) -> tuple[str, tuple[str, ...]] | None:
    """Returns the ending of captions and the keys that lead to the caption in its files; None where there is none.

    It is the ending that most images have, of equals the first of `endings`, and where a column is asked for its
    longest ending. JSON may say something else of an image, so that it counts only where it has a known key: where
    other captions are there too, `num_sampled` of `json_files` are looked at, and otherwise all until one has a key.
    """
    found = [ending for ending in endings.captions if counts.get(ending)]
    if endings.caption_column is None:
        found.sort(key=lambda ending: -counts[ending])  # keeps the order of equals
    for ending in found:
        keys = endings.keys(ending)
        if ending != "json" or keys:
            return ending, keys
        files = json_files() if ending == found[-1] else islice(json_files(), num_sampled)
        if (key := find_json_key(files, num_sampled, endings.text)) is not None:
            return ending, (key,)
    return None


def with_ending(samples: Iterable[Sample], chosen: str) -> list[Sample]:
    """Returns `samples` without text files that have neither an image nor the chosen ending: they are no captions."""
    return [sample for sample in samples if sample.is_image or chosen in sample.captions]


def _of_stem(
    names: Sequence[str], places: Sequence[int], captions: dict[str, int], doubled: frozenset[str], text: TextColumn
) -> Iterator[Sample]:
    """Yields the samples of images of one stem. One of them gets the caption, preferably one that can be decoded.

    The others, which may be masks of that image, are reported as unusable. Without a caption none of them has one.
    """
    first, *others = sorted(places, key=lambda place: names[place].rpartition(".")[2].lower() not in decoded_endings())
    belongs = f"the {text.one} belongs to {names[first].rpartition('/')[2]}, of the same name" if captions else ""
    yield Sample(first, captions, doubled=doubled)
    for place in others:
        yield Sample(place, captions, belongs)


def _without_ending(captions: dict[str, int], other: int | None, doubled: frozenset[str], text: TextColumn) -> Sample:
    """Returns the sample of a stem without an image's ending: a file of another ending, which decoding will check."""
    if other is not None:
        return Sample(other, captions, is_image=False, doubled=doubled)
    return Sample(next(iter(captions.values())), captions, f"a {text.one} without an image", is_image=False)
