"""Captioned images from outside, through Hugging Face `datasets`: a folder, Parquet, WebDataset tars, or the Hub.

A folder of images has its captions in `metadata.jsonl` (or .csv, .parquet, as `datasets` reads them) or in a text file
beside each image. Images stay bytes here: who decodes them (`encoding.py`) decides what is damaged. Rows are numbered
by the source, so that every process reads the same ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.libraries import first_line, library
from experiments.errors import ConfigError, did_you_mean

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_COLUMNS = ("caption", "text", "txt", "captions", "prompt", "json.caption", "json.text")
"""Looked for in this order. A dot goes into a column of JSON."""
SAMPLED_ROWS = 16
TAR_BLOCK = 512
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Row:
    """One image as it is stored, its caption (None: there is none), and what to call it."""

    content: bytes
    caption: str | None
    name: str


class UnreadableImageError(Exception):
    """A row without an image; it is left out for this reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class SourceRows:
    """All rows of a source, readable in any order."""

    path: str
    dataset: Any
    image_column: str
    caption_column: str

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.dataset)

    def read(self, number: int) -> Row:
        """`UnreadableImageError` where there is no image, or it is a file that cannot be read."""
        row = self.dataset[number]
        image, caption = row[self.image_column], _look_up(row, self.caption_column)
        name = Path(image["path"]).name if image and image.get("path") else f"row {number}"
        if image is None:
            raise UnreadableImageError(name, "it has no image")
        try:
            content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        except OSError as error:
            raise UnreadableImageError(name, (error.strerror or str(error)).lower()) from error
        return Row(content, _as_text(caption), name)

    def sample_sha256(self) -> str:
        """Of some images and captions, spread over the source: tells one source from another of the same length."""
        digest = hashlib.sha256()
        for number in sorted({place * (len(self) - 1) // (SAMPLED_ROWS - 1) for place in range(SAMPLED_ROWS)}):
            try:
                row = self.read(number)
            except UnreadableImageError:  # it will be listed
                continue
            digest.update(hashlib.sha256(row.content).digest() + (row.caption or "").encode() + b"\0")
        return digest.hexdigest()


def open_source(
    source: str, split: str, subset: str | None, image_column: str | None, caption_column: str | None
) -> SourceRows:
    """The rows of `source`; columns are found by their types and names unless given.

    Raises `ConfigError`: nothing there, no images, no captions, a Hub that cannot be reached.
    """
    datasets = library("datasets")
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # what it logs, it also raises
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    dataset = _load(datasets, source, split, subset)
    image_column = _image_column(datasets, dataset, source, image_column)
    dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    return SourceRows(source, dataset, image_column, _caption_column(dataset, source, caption_column))


def _load(datasets: Any, source: str, split: str, subset: str | None) -> Any:
    path = Path(source)
    if path.is_file():
        return _load_files(datasets, source, [path])
    if path.is_dir():
        return _load_folder(datasets, path)
    if not HUB_NAME.fullmatch(source):
        raise ConfigError(
            f"SOURCE {source} does not exist.", "Name a folder, .parquet or .tar files, or a Hub data set."
        )
    return _loaded(datasets, source, source, name=subset, split=split)


def _load_folder(datasets: Any, folder: Path) -> Any:
    """By what lies in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if images and any(path.name in METADATA_FILES for path in files):
        listed = _loaded(datasets, str(folder), "imagefolder", data_dir=str(folder), split="train")
        return _with_unlisted(datasets, listed, images)
    if images:
        return _with_sidecars(datasets, folder, images)
    packed = [path for path in files if path.suffix in (".parquet", ".tar")]
    if not packed:
        raise ConfigError(f"SOURCE {folder} holds no images.", "It may hold image files, .parquet files or .tar files.")
    return _load_files(datasets, str(folder), packed)


def _load_files(datasets: Any, source: str, files: Sequence[Path]) -> Any:
    builders = {".parquet": "parquet", ".tar": "webdataset"}
    kinds = {path.suffix for path in files}
    if len(kinds) > 1 or not kinds <= set(builders):
        raise ConfigError(
            f"SOURCE {source} holds files of the kinds {', '.join(sorted(kinds))}.",
            "Name a folder of images, or files that are all .parquet or all .tar.",
        )
    for path in files:
        _check_whole(path)
    return _loaded(datasets, source, builders[kinds.pop()], data_files=[str(path) for path in files], split="train")


def _check_whole(path: Path) -> None:
    """A tar ends in zeros; one that is cut short would be read without a word, up to where it ends."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, TAR_BLOCK), os.SEEK_END)
        if path.suffix == ".tar" and file.read() != bytes(TAR_BLOCK):
            raise ConfigError(f"SOURCE {path} is cut short: it does not end as a tar does.", "Copy it again.")


def _with_unlisted(datasets: Any, listed: Any, images: Sequence[Path]) -> Any:
    """Images that the metadata do not name have no caption: `datasets` would say nothing of them."""
    if not isinstance(listed.features.get("image"), datasets.Image):
        return listed
    stored = listed.select_columns("image").cast_column("image", datasets.Image(decode=False))["image"]
    known = {Path(image["path"]).resolve() for image in stored if image and image["path"]}
    others = [str(path) for path in images if path.resolve() not in known]
    if not others:
        return listed
    rows = {name: others if name == "image" else [None] * len(others) for name in listed.column_names}
    return datasets.concatenate_datasets([listed, datasets.Dataset.from_dict(rows, features=listed.features)])


def _loaded(datasets: Any, source: str, builder: str, **where: Any) -> Any:
    try:
        return datasets.load_dataset(builder, **where)
    except Exception as error:  # its loaders raise their own classes, the Hub's and the file formats'
        if builder == source:
            raise ConfigError(
                f"SOURCE {source} is no path, and the Hugging Face Hub does not give it: {first_line(error)}.",
                "Check the name and the network, or download it first and name the folder.",
            ) from error
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ConfigError(f"SOURCE {source} cannot be read: {first_line(cause)}.", "Check its files.") from error


def _with_sidecars(datasets: Any, folder: Path, images: Sequence[Path]) -> Any:
    """`cat.jpg` with its caption in `cat.txt`. An image without one is listed as such, unless none has one."""
    texts = [path.with_suffix(".txt") for path in images]
    captions = [text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None for text in texts]
    if not any(captions):
        raise ConfigError(
            f"SOURCE {folder} has no captions.",
            "Put each into a text file beside its image (cat.jpg, cat.txt), or all into metadata.jsonl with the keys "
            "file_name and caption.",
        )
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [str(path) for path in images], "caption": captions}
    return datasets.Dataset.from_dict(rows, features=features)


def _image_column(datasets: Any, dataset: Any, source: str, given: str | None) -> str:
    if given is not None:
        return _existing(dataset, source, "--image-column", given)
    found = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    found += [name for name in ("image", "jpg", "png", "jpeg") if name in dataset.features and name not in found]
    if not found:
        columns = ", ".join(dataset.column_names)
        raise ConfigError(f"SOURCE {source} has no column of images.", f"Name it with --image-column: {columns}.")
    return str(found[0])


def _caption_column(dataset: Any, source: str, given: str | None) -> str:
    if given is not None:
        _existing(dataset, source, "--caption-column", given.partition(".")[0])
        return given
    for name in CAPTION_COLUMNS:
        column, _, key = name.partition(".")
        if column in dataset.column_names and (not key or key in (dataset.features[column] or {})):
            return name
    raise ConfigError(
        f"SOURCE {source} has no captions: its columns are {', '.join(dataset.column_names)}.",
        "Name the right one with --caption-column.",
    )


def _existing(dataset: Any, source: str, option: str, name: str) -> str:
    if name not in dataset.column_names:
        raise ConfigError(
            f"{option} {name!r} is not a column of {source}.", did_you_mean(name, map(str, dataset.column_names))
        )
    return name


def _look_up(row: Mapping[str, Any], name: str) -> Any:
    column, _, key = name.partition(".")
    value = row[column]
    return (value or {}).get(key) if key else value


def _as_text(value: Any) -> str | None:
    """The first of several captions; None for a blank one."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = str(value).strip() if value is not None else ""
    return text or None
