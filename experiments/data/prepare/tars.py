"""Reads images and captions inside tars (WebDataset), such as `0001.jpg` with `0001.txt` or `0001.json`.

Each tar is scanned once, and only the offsets of each image and its caption are kept, 8 bytes each. Nothing is
unpacked, so a path in a tar cannot make the program write outside its folder. `pairing.py` pairs the members.

Legend: S samples, K kinds of captions.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.data.order import Integers
from experiments.data.prepare.missing_text import no_known_key
from experiments.data.prepare.pairing import Endings, caption_elsewhere, choose_ending, pair, two_captions
from experiments.data.prepare.source_rows import (
    MAX_CAPTION_BYTES,
    MAX_IMAGE_BYTES,
    Row,
    UnusableRowError,
    caption_in,
    listed_as,
    raise_if_passing,
)
from experiments.data.prepare.text_columns import CAPTIONS, TextColumn
from experiments.errors import ConfigError
from experiments.inputs import PIECE_BYTES
from experiments.text import first_line

NOWHERE, TWICE = -1, -2
"""Stand for the offset of a caption that is not there, or of one that is there twice."""
TAR_BLOCK = 512
SAMPLED_ROWS = 64
"""The number of JSON files in which the key of captions is looked for."""
SHOWN_ENDINGS = 12
COPY_AGAIN = "Copy it again."
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
"""The first bytes of compressed files, and the commands that unpack them."""
KEEP_APART = "Copy it again, or if tars were joined, keep them apart in one folder and name the folder."


@dataclass(frozen=True)
class TarRows:
    """Holds the images of tars: for each its tar, the offsets of image and caption, and the number of a problem.

    A negative number is that of the reason why an image without a caption has none.
    """

    tars: Sequence[Path]
    place_S4: Integers
    problems: Sequence[str]
    keys: tuple[str, ...] = ()
    kind: TextColumn = CAPTIONS

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.place_S4)

    def read(self, number: int) -> Row:
        """Returns row `number`. Raises `UnusableRowError` for a member that is no file or cannot be used."""
        tar, image, caption, problem = self.place_S4[number].tolist()
        name = f"{self.tars[tar].name} byte {image}"
        try:
            with listed_as(name), tarfile.open(self.tars[tar], "r:") as opened:
                return self._row(opened, self.tars[tar].name, image, caption, problem)
        except tarfile.TarError as error:
            raise UnusableRowError(name, f"the tar is another one now: {error}") from error

    def _row(self, opened: tarfile.TarFile, tar: str, image: int, caption: int, problem: int) -> Row:
        member = member_at(opened, image)
        name = f"{tar}/{member.name}"
        if problem > 0:
            raise UnusableRowError(name, self.problems[problem])
        with listed_as(name):
            content = content_of(opened, member, MAX_IMAGE_BYTES)
            text = None if caption == NOWHERE else self._caption(opened, caption)
            return Row(content, text, name, self.problems[-problem])

    def text(self, number: int) -> str | None:
        """Returns the caption or label of a row. Raises `UnusableRowError` as `read` does."""
        tar, image, caption, problem = self.place_S4[number].tolist()
        name = f"{self.tars[tar].name} byte {image}"
        if problem > 0:
            raise UnusableRowError(name, self.problems[problem])
        if caption == NOWHERE:
            return None
        try:
            with listed_as(name), tarfile.open(self.tars[tar], "r:") as opened:
                return self._caption(opened, caption)
        except tarfile.TarError as error:
            raise UnusableRowError(name, f"the tar is another one now: {error}") from error

    def _caption(self, opened: tarfile.TarFile, place: int) -> str | None:
        return caption_in(content_of(opened, member_at(opened, place), MAX_CAPTION_BYTES), self.keys, self.kind)


def open_tars(
    source: str, tars: Sequence[Path], image_column: str | None, caption_column: str | None, text: TextColumn = CAPTIONS
) -> tuple[TarRows, str, str]:
    """Returns the rows of tars, and the names of their image and caption columns.

    Raises `ConfigError` for a tar that is damaged, and where no image has a caption, or label where `text` is that.
    """
    endings = Endings.asked(image_column, caption_column, text)
    problems = {"": 0}
    found = [_samples(number, path, endings, problems) for number, path in enumerate(tars)]
    sample_SK = np.concatenate([samples for samples, _ in found])
    is_image_S, caption_SK = sample_SK[:, 3] == 1, sample_SK[:, 4:]
    counts = dict(zip(endings.captions, (caption_SK[is_image_S] != NOWHERE).sum(axis=0).tolist(), strict=True))

    def json_files() -> Iterator[bytes]:
        return _contents(tars, sample_SK[:, 0], caption_SK[:, endings.captions.index("json")])

    chosen = choose_ending(counts, endings, json_files, SAMPLED_ROWS)
    if chosen is None and counts.get("json"):
        raise no_known_key(source, json_files(), text)
    if chosen is None:
        raise _without_text(source, text, {ending for _, seen in found for ending in seen})
    ending, keys = chosen
    caption_S = caption_SK[:, endings.captions.index(ending)]
    problem_S = _problems_with(ending, endings, sample_SK, problems)
    place_S4 = np.column_stack([sample_SK[:, :2], np.maximum(caption_S, NOWHERE), problem_S])
    kept_S = is_image_S | (caption_S != NOWHERE)  # notes of something else, without an image, are none
    rows = TarRows(tars, place_S4[kept_S], list(problems), keys, text)
    image = image_column or next(seen[0] for samples, seen in found if len(samples))
    return rows, image, ".".join((ending, *keys))


def member_at(opened: tarfile.TarFile, place: int) -> tarfile.TarInfo:
    """Returns the member at this byte, with its long name. Raises `tarfile.TarError` where there is none any more."""
    assert opened.fileobj is not None
    opened.fileobj.seek(place)
    return tarfile.TarInfo.fromtarfile(opened)


def content_of(opened: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes:
    """Returns a member's content. Raises `ValueError` for a link, a device, or more than `max_bytes`."""
    if not member.isreg():
        raise ValueError("it is not a regular file")
    if member.size > max_bytes:
        raise ValueError(f"it is larger than {max_bytes / 2**20:,.0f} MiB, the most that is read")
    file = opened.extractfile(member)
    assert file is not None
    return file.read()


def _samples(number: int, path: Path, endings: Endings, problems: dict[str, int]) -> tuple[Integers, list[str]]:
    """Returns a row for each sample (tar, image, problem, whether it is an image, captions), and some endings."""
    members = list(_members(path))
    names = [name for name, _ in members]
    samples = pair(names, endings)
    rows = []
    for sample in samples:
        starts = [
            TWICE if ending in sample.doubled else members[sample.captions[ending]][1] if ending in sample.captions
            else NOWHERE for ending in endings.captions
        ]  # fmt: skip
        problem = problems.setdefault(sample.problem, len(problems))
        rows.append((number, members[sample.place][1], problem, sample.is_image, *starts))
    named = [names[sample.place] for sample in samples if sample.is_image] + names
    seen = list(dict.fromkeys(name.rpartition("/")[2].partition(".")[2] for name in named[: 2 * SAMPLED_ROWS]))
    return np.array(rows, dtype=np.int64).reshape(-1, 4 + len(endings.captions)), seen


def _problems_with(ending: str, endings: Endings, sample_SK: Integers, problems: dict[str, int]) -> Integers:
    """Returns the numbers of problems where captions have this ending; those of captions elsewhere are negative."""
    caption_SK, problem_S = sample_SK[:, 4:], sample_SK[:, 2].copy()
    caption_S = caption_SK[:, endings.captions.index(ending)]
    doubled = two_captions(ending, endings.text)
    problem_S[(problem_S == 0) & (caption_S == TWICE)] = problems.setdefault(doubled, len(problems))
    for other, other_S in zip(endings.captions, caption_SK.T, strict=True):
        elsewhere_S = (problem_S == 0) & (caption_S == NOWHERE) & (other_S != NOWHERE)
        problem_S[elsewhere_S] = -problems.setdefault(caption_elsewhere(ending, other), len(problems))
    return problem_S


def _members(path: Path) -> Iterator[tuple[str, int]]:
    """Yields the name and the offset of every member that is not a folder.

    Raises `ConfigError` for a tar that is damaged, or goes on after the block of zeros at which `tarfile` stops.
    """
    try:
        _check_whole(path)
        with tarfile.open(path, "r:") as opened:
            while (member := opened.next()) is not None:
                opened.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if not member.isdir():
                    yield member.name, member.offset
            place = _first_after_end(opened)
            if place is not None and place < opened.offset + TAR_BLOCK:
                raise ConfigError(f"SOURCE {path} is damaged at byte {opened.offset:,}.", COPY_AGAIN)
            if place is not None:
                end = f"has zeros at byte {opened.offset:,}, as at the end of a tar, and goes on at byte {place:,}"
                raise ConfigError(f"SOURCE {path} {end}: it is damaged, or several tars were joined.", KEEP_APART)
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise_if_passing(error, str(path))
        raise ConfigError(f"SOURCE {path} cannot be read: {first_line(error)}.", COPY_AGAIN) from error


def _first_after_end(opened: tarfile.TarFile) -> int | None:
    """Returns the place of the first byte after the last member that is not zero; None where all are zero."""
    assert opened.fileobj is not None
    opened.fileobj.seek(opened.offset)
    while piece := opened.fileobj.read(PIECE_BYTES):
        if rest := piece.lstrip(b"\0"):
            return opened.fileobj.tell() - len(rest)
    return None


def _check_whole(path: Path) -> None:
    """Checks that a tar ends in zeros, since `tarfile` reads one that is cut short without an error."""
    if not path.is_file():  # opening a FIFO would wait for ever
        raise ConfigError(f"SOURCE {path} cannot be read: it is not a regular file.", "Name or copy the file itself.")
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, TAR_BLOCK), os.SEEK_END)
        if file.read() != bytes(TAR_BLOCK):
            file.seek(0)
            first = file.read(max(map(len, COMPRESSED)))
            unpack = next((command for magic, command in COMPRESSED.items() if first.startswith(magic)), None)
            if unpack is None:
                raise ConfigError(f"SOURCE {path} is cut short: it does not end as a tar does.", COPY_AGAIN)
            raise ConfigError(
                f"SOURCE {path} is compressed, and only a plain tar can be read in any order.",
                f"Unpack it with {unpack} < {path.name} > OTHER.tar, and name that.",
            )


def _contents(tars: Sequence[Path], tar_S: Integers, caption_S: Integers) -> Iterator[bytes]:
    """Yields the content of captions at these offsets; what cannot be read is listed when its row is."""
    for row in np.flatnonzero(caption_S >= 0):
        path = tars[tar_S[row]]
        with suppress(UnusableRowError, tarfile.TarError), listed_as(path.name), tarfile.open(path, "r:") as opened:
            yield content_of(opened, member_at(opened, int(caption_S[row])), MAX_CAPTION_BYTES)


def _without_text(source: str, text: TextColumn, endings: set[str]) -> ConfigError:
    shown = ", ".join(sorted(filter(None, endings))[:SHOWN_ENDINGS])
    return ConfigError(
        f"SOURCE {source} has no {text.what}: no image has a file of its name with an ending of {text.what}. There are "
        f"the endings {shown or 'of nothing'}.",
        f"Name the right endings with --image-column and {text.option}.",
    )
