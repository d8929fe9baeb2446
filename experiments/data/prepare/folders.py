"""Reads images that are files of a folder, with captions in files beside them or in a table (`path_tables.py`).

A table may come from anywhere, so the files that it names must lie in the folder after links are resolved. The files of
the folder itself are the user's own, so links among them are followed. A file is opened only when its row is read, and
reading never blocks, as it would on a FIFO.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.prepare.pairing import (
    Endings,
    Sample,
    choose_ending,
    count_endings,
    is_hidden,
    pair,
    with_ending,
)
from experiments.data.prepare.source_rows import (
    MAX_CAPTION_BYTES,
    MAX_IMAGE_BYTES,
    ReadableRows,
    Row,
    UnusableRowError,
    as_caption,
    caption_in,
    listed_as,
    raise_if_passing,
)
from experiments.data.prepare.text_columns import CAPTIONS, TextColumn
from experiments.inputs import read_input
from experiments.text import encodable

SAMPLED_FILES = 16
"""The number of JSON files in which the key of captions is looked for first."""
OUTSIDE_CLASSES = "an image outside of the folders of classes"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file, by its path relative to the folder, and its caption: a value of a table, or a file beside it.

    `problem` says why the image cannot be used, if so. `is_named` is True where the path comes from a table.
    """

    name: str
    caption: Any = None
    caption_file: str = ""
    problem: str = ""
    is_named: bool = False
    elsewhere: str = ""
    """Says why it has no caption although a file with one is there."""


@dataclass(frozen=True)
class FileRows:
    """Holds the image files of a folder; `keys` lead to the caption inside JSON caption files."""

    folder: Path
    files: Sequence[ImageFile]
    keys: tuple[str, ...] = ()
    kind: TextColumn = CAPTIONS

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.files)

    def read(self, number: int) -> Row:
        """Returns a row. Raises `UnusableRowError` for a file that is missing, not regular, or outside the folder."""
        file = self.files[number]
        if file.problem:
            raise UnusableRowError(file.name, file.problem)
        with listed_as(file.name):
            path = inside(self.folder, file.name) if file.is_named else self.folder / file.name
            return Row(read_input(path, MAX_IMAGE_BYTES), self._caption(file), file.name, file.elsewhere)

    def text(self, number: int) -> str | None:
        """Returns the caption or label of a row. Raises `UnusableRowError` where its text cannot be used."""
        file = self.files[number]
        if file.problem:
            raise UnusableRowError(file.name, file.problem)
        with listed_as(file.name):
            return self._caption(file)

    def _caption(self, file: ImageFile) -> str | None:
        if not file.caption_file:
            return as_caption(file.caption, self.kind)
        return caption_in(read_input(self.folder / file.caption_file, MAX_CAPTION_BYTES), self.keys, self.kind)


@dataclass(frozen=True)
class JoinedRows:
    """Concatenates the rows of two sources."""

    first: ReadableRows
    second: ReadableRows

    def __len__(self) -> int:
        """Returns the number of rows of both sources."""
        return len(self.first) + len(self.second)

    def read(self, number: int) -> Row:
        """Returns row `number`. Raises `UnusableRowError` where it cannot be used."""
        from_second = number - len(self.first)
        return self.first.read(number) if from_second < 0 else self.second.read(from_second)

    def text(self, number: int) -> str | None:
        """Returns the caption or label of row `number`. Raises `UnusableRowError` where it cannot be used."""
        from_second = number - len(self.first)
        return self.first.text(number) if from_second < 0 else self.second.text(from_second)


def inside(folder: Path, name: object) -> Path:
    """Returns the path of a file that a table names. Raises `ValueError` where it is not in or below `folder`.

    A folder of the Hub's cache is made of links into the repository's `blobs`, which therefore belong to it.
    """
    if not isinstance(name, str) or not name:
        raise ValueError("its path is no text")
    root = os.path.realpath(folder.parent.parent if folder.parent.name == "snapshots" else folder)
    path = os.path.realpath(folder / name)
    if os.path.commonpath((root, path)) != root:
        raise ValueError("it lies outside of the folder of the source")
    if is_hidden(name if not os.path.isabs(name) else os.path.relpath(path, root)):
        raise ValueError("a hidden file is never data")
    return Path(path)


def list_folder(folder: Path) -> tuple[list[str], list[ImageFile]]:
    """Returns all files below that are not hidden as sorted relative paths, and the folders that cannot be read."""
    names: list[str] = []
    problems: list[ImageFile] = []

    def relative(path: str) -> str:
        return os.path.relpath(path, folder)

    def note(error: OSError) -> None:
        raise_if_passing(error, str(error.filename))
        problems.append(ImageFile(relative(error.filename), problem=f"a folder: {(error.strerror or '').lower()}"))

    for where, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not is_hidden(name)]
        links = [path for name in folders if os.path.islink(path := os.path.join(where, name))]
        problems += [ImageFile(relative(path), problem="a link to a folder, which is not followed") for path in links]
        names += [relative(os.path.join(where, name)) for name in files if not is_hidden(name)]
    return sorted(names, key=lambda name: name.split("/")), sorted(problems, key=lambda one: one.name)


def classes_of_folders(folder: Path, images: Sequence[str]) -> list[ImageFile]:
    """Returns the images of a tree whose first folder is the class, and the folders and images that are left out."""
    files = [
        ImageFile(name, caption=name.partition("/")[0]) if "/" in name else ImageFile(name, problem=OUTSIDE_CLASSES)
        for name in images
    ]
    with os.scandir(folder) as entries:
        folders = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
    full = {file.caption for file in files}
    empty = [name for name in folders if name not in full and not is_hidden(name)]
    return [*files, *(ImageFile(f"{name}/", problem="a class folder without images") for name in empty)]


def named_folders(files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Returns the classes of `classes_of_folders`, sorted by name; names that are no Unicode are listed by rows."""
    names = {str(file.caption) for file in files if file.caption is not None}
    return tuple(sorted(name for name in names if encodable(name) == name))


def captioned_beside(folder: Path, names: Sequence[str], endings: Endings) -> FileRows | None:
    """Returns the images with captions in files of the same name; None where no image has such a caption."""
    samples = pair(names, endings)
    found = choose_ending(count_endings(samples), endings, lambda: _json_files(folder, names, samples), SAMPLED_FILES)
    if found is None:
        return None
    chosen, keys = found
    files = []
    for sample in with_ending(samples, chosen):
        caption = sample.captions.get(chosen)
        files.append(
            ImageFile(
                names[sample.place], caption_file="" if caption is None else names[caption],
                problem=sample.problem_with(chosen, endings.text), elsewhere=sample.elsewhere(chosen),
            )
        )  # fmt: skip
    return FileRows(folder, files, keys, endings.text)


def label_files(names: Sequence[str], endings: Endings) -> tuple[str, int]:
    """Returns the ending of label files that most images have, and how many have it; JSON may hold something else."""
    counts = count_endings(pair(names, endings))
    del counts["json"]
    return max(counts.items(), key=lambda item: item[1], default=("", 0))


def json_beside(folder: Path, names: Sequence[str], endings: Endings) -> Iterator[bytes]:
    """Yields the content of the JSON files beside images; those that cannot be read are passed over."""
    return _json_files(folder, names, [sample for sample in pair(names, endings) if sample.is_image])


def _json_files(folder: Path, names: Sequence[str], samples: Sequence[Sample]) -> Iterator[bytes]:
    for sample in with_ending(samples, "json"):
        if "json" in sample.captions:
            name = names[sample.captions["json"]]
            with suppress(UnusableRowError), listed_as(name):  # it is listed when its row is read
                yield read_input(folder / name, MAX_CAPTION_BYTES)
