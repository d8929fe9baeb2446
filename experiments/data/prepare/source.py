"""Opens captioned images of the user: a folder, Parquet, WebDataset tars, or a data set of the Hub.

Folders and tars are read in place. Parquet files that hold images and data sets of the Hub are read through Hugging
Face `datasets`, which maps them into memory. Images stay encoded bytes here; `encoding.py`, which decodes them, decides
which are damaged. A row's number depends only on the source, so that every process reads the same rows.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from experiments.config.prepared_set import Credits
from experiments.data.prepare.folders import (
    FileRows,
    ImageFile,
    JoinedRows,
    captioned_beside,
    classes_of_folders,
    label_files,
    list_folder,
    named_folders,
)
from experiments.data.prepare.image_families import Families, families_of_images
from experiments.data.prepare.image_tables import TableRows, open_hub
from experiments.data.prepare.listing import Asked, Listing
from experiments.data.prepare.missing_text import with_unread_text, without_text
from experiments.data.prepare.pairing import Endings
from experiments.data.prepare.parquet_images import open_parquet
from experiments.data.prepare.path_tables import (
    LacksTextError,
    all_tables,
    find_tables,
    is_metadata,
    read_tables,
    real_paths,
    unlisted,
)
from experiments.data.prepare.request import DEFAULT_SPLIT
from experiments.data.prepare.source_rows import ReadableRows, Row, UnusableRowError
from experiments.data.prepare.tars import open_tars
from experiments.data.prepare.text_columns import CAPTIONS, LABELS, TextColumn
from experiments.data.prepare.unread_files import UNUSED, say_unread, say_unread_tables
from experiments.errors import ConfigError

SAMPLED_ROWS = 16
SHOWN_TABLES = 3
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
PACKED_SUFFIXES = (".parquet", ".tar")
CLASS_FOLDERS = "folders"
"""Stands for the column of labels where the classes are folders."""


@dataclass(frozen=True)
class SourceRows:
    """Holds all rows of a source, which can be read in any order."""

    path: str
    rows: ReadableRows
    image_column: str
    caption_column: str
    class_names: tuple[str, ...] | None = None
    """The classes in the order of their numbers; None where the source does not order them, or has captions."""
    find_families: Callable[[], Families] = Families
    """Finds the families when they are first asked for: only the process that divides rows compares images for it."""
    held_out: frozenset[int] = frozenset()
    """Rows that are not trained on although their family is."""
    origin: Credits | None = None
    """The makers of images that come in packages; a source in files does not name them."""
    notes: tuple[str, ...] = ()
    """Lines that say which files beside the rows are not used."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.rows)

    @cached_property
    def families(self) -> Families:
        """Returns the families of variants, each of which stays on one side of the split."""
        return self.find_families()

    def read(self, number: int) -> Row:
        """Returns row `number`. Raises `UnusableRowError` where it has no image, or a file that cannot be read."""
        return self.rows.read(number)

    def sample_sha256(self) -> str:
        """Returns a hash of a few rows spread over the source, which tells it from another of the same length."""
        digest = hashlib.sha256()
        for number in sorted({place * (len(self) - 1) // (SAMPLED_ROWS - 1) for place in range(SAMPLED_ROWS)}):
            try:
                row = self.read(number)
            except UnusableRowError:  # it is listed as left out when its shard is made
                continue
            digest.update(hashlib.sha256(row.content).digest() + (row.caption or "").encode() + b"\0")
        return digest.hexdigest()


def open_source(
    source: str,
    split: str | None,
    subset: str | None,
    image_column: str | None,
    caption_column: str | None,
    text: TextColumn = CAPTIONS,
) -> SourceRows:
    """Returns the rows of `source`; columns that are not given are found by their types and names.

    With `text` of labels, the folders of a tree of images are their classes where no column is named. Raises
    `ConfigError` where the source does not exist, has no images or no such text, or the Hub cannot be reached, and
    where a split or subset of files is asked for, which have none.
    """
    asked = Asked(source, image_column, caption_column, text)
    of_hub = next((option for option, value in (("--split", split), ("--subset", subset)) if value is not None), None)
    if of_hub is not None and (os.path.isfile(source) or os.path.isdir(source)):
        raise ConfigError(f"{of_hub} is for data sets of the Hub, and SOURCE {source} is a path.", "Leave it out.")
    if os.path.isfile(source):
        names = [Path(source).name]
        return _open_packed(asked, Listing(Path(source).parent, names, [], [], []), names)
    if os.path.isdir(source):
        return _open_folder(asked, Path(source))
    if os.path.lexists(source) or not HUB_NAME.fullmatch(source):
        what = "is neither a file nor a folder" if os.path.lexists(source) else "does not exist"
        raise ConfigError(f"SOURCE {source} {what}.", "Name a folder, .parquet or .tar files, or a Hub data set.")
    rows, image, column = open_hub(source, split or DEFAULT_SPLIT, subset, image_column, caption_column, text)
    return _of_table(source, rows, rows, image, column)


def _open_folder(asked: Asked, folder: Path) -> SourceRows:
    """Opens a folder by what it holds: loose images with their text, or else packed files."""
    names, problems = list_folder(folder)
    images, tables = [name for name in names if Endings().image_stem(name)], find_tables(names)
    listing = Listing(folder, names, images, tables, problems)
    if images and (found := _of_images(asked, listing)):
        return replace(found, notes=found.notes + say_unread(folder, names, asked.image_column))
    packed = [name for name in names if _suffix(name) in PACKED_SUFFIXES]
    if packed:
        return _open_packed(asked, listing, packed)
    if images:
        raise without_text(asked, listing)
    seen = f" ({problems[0].name}: {problems[0].problem})" if problems else ""
    hint = "It may hold image files, .parquet files or .tar files."
    raise ConfigError(f"SOURCE {folder} holds no images{seen}.", hint)


def _of_images(asked: Asked, listing: Listing) -> SourceRows | None:
    """Returns loose images with their text, which is in metadata, or else in files beside them or in other tables.

    Tables come first where they leave fewer images without text than the files do.
    """
    if any(map(is_metadata, listing.tables)):
        try:
            if named := _named_by_tables(asked, listing):
                return replace(named, notes=(*named.notes, *say_unread_tables(asked, listing)))
        except LacksTextError as error:  # the same error is raised where there is no text elsewhere
            tables = [*listing.tables, *(name for name in all_tables(listing.names) if name not in listing.tables)]
            if found := _not_of_metadata(asked, replace(listing, tables=tables)):
                return replace(found, notes=tuple(dict.fromkeys((f"{UNUSED}{error}", *found.notes))))
    return _not_of_metadata(asked, listing)


def _not_of_metadata(asked: Asked, listing: Listing) -> SourceRows | None:
    """Returns loose images with their text as `_of_images` does, where no metadata have it."""
    if asked.wants_folders and any("/" in name for name in listing.images):
        return _labelled_by_folders(asked, listing)
    beside = _captioned_beside(asked, listing)
    if beside is None:
        return _named_by_tables(asked, listing)
    if num_without := _num_without_text(beside):
        with suppress(ConfigError):  # a table that is no use does not hinder the files
            if tabled := _named_by_tables(asked, listing):
                if _num_without_text(tabled) < num_without:
                    return tabled
                said = f"{UNUSED}the tables that name images: files beside them give as many {asked.text.what} or more."
                return replace(beside, notes=(*beside.notes, said))
    return beside


def _num_without_text(found: SourceRows) -> int:
    """Returns the number of images to which neither a file nor a row of a table gives a text."""
    assert isinstance(found.rows, FileRows)
    return sum(not (file.caption_file or file.is_named or file.problem) for file in found.rows.files)


def _labelled_by_folders(asked: Asked, listing: Listing) -> SourceRows:
    """Returns images in folders with their classes, which are the folders.

    They are what files say instead where at least half of the images have one with a label, and what a table says where
    all images lie in one folder, which would be the only class. Other labels that are there are said to be unused.
    """
    num_images = len(listing.images)
    ending, num_labels = label_files(listing.names, asked.endings)
    if 2 * num_labels >= num_images and (beside := _captioned_beside(asked, listing)):
        return beside
    said = f"the .{ending} beside {num_labels:,} of {num_images:,} images. Use --label-column {ending}."
    unused = [said] if num_labels else []
    in_one_folder = len({name.partition("/")[0] for name in listing.images}) == 1
    try:
        tabled = _named_by_tables(asked, listing)
    except ConfigError as error:
        unused += [str(error)] if in_one_folder else []
    else:
        if tabled is not None and _num_without_text(tabled) < num_images:
            if in_one_folder:
                return tabled
            unused.append(f"a table's column. Use --label-column {tabled.caption_column}.")
        elif in_one_folder and listing.tables:
            unused.append(f"{listing.tables[0]}, which names none of the images.")
    files = classes_of_folders(listing.folder, listing.images)
    return SourceRows(
        asked.source, FileRows(listing.folder, [*files, *listing.problems]), image_column="image",
        caption_column=CLASS_FOLDERS, class_names=named_folders(files),
        notes=tuple(f"The classes are the folders, and not read: {one}" for one in unused),
    )  # fmt: skip


def _captioned_beside(asked: Asked, listing: Listing) -> SourceRows | None:
    """Returns the images that have caption files beside them, or None. The default column names mean no column here."""
    rows = captioned_beside(listing.folder, listing.names, asked.endings)
    if rows is None:
        return None
    rows = replace(rows, files=[*rows.files, *listing.problems])
    return SourceRows(asked.source, rows, asked.image_column or "image", asked.caption_column or "caption")


def _named_by_tables(asked: Asked, listing: Listing) -> SourceRows | None:
    """Returns the images that tables name, or None. Other images of the folder become rows without a caption."""
    columns = asked.image_column, asked.caption_column
    found = read_tables(listing.folder, listing.tables, *columns, asked.text)
    if found is None:
        return None
    paths = real_paths(listing.folder, found.files)
    others = with_unread_text(asked, listing, unlisted(listing.folder, listing.images, set(paths)))
    rows = FileRows(listing.folder, [*found.files, *others, *listing.problems], kind=asked.text)
    families = families_of_images(paths, len(rows))
    image, caption = asked.image_column or "image", found.text_column
    notes = [f"{UNUSED}{problem}" for problem in found.unused[:SHOWN_TABLES]]
    notes += [f"{UNUSED}{len(found.unused) - SHOWN_TABLES:,} more tables."] if found.unused[SHOWN_TABLES:] else []
    return SourceRows(asked.source, rows, image, caption, find_families=lambda: families, notes=tuple(notes))


def _open_packed(asked: Asked, listing: Listing, names: Sequence[str]) -> SourceRows:
    """Opens files that are all tars or all Parquet; a Parquet file beside a tar of the same name is ignored."""
    folder, stems = listing.folder, {stem for stem, suffix in map(os.path.splitext, names) if suffix.lower() == ".tar"}
    names = [name for name in names if not (_suffix(name) == ".parquet" and os.path.splitext(name)[0] in stems)]
    kinds = {_suffix(name) for name in names}
    if len(kinds) > 1 or not kinds <= set(PACKED_SUFFIXES):
        raise ConfigError(
            f"SOURCE {asked.source} holds files of the kinds {', '.join(sorted(kinds))}.",
            "Name a folder of images, or files that are all .parquet or all .tar.",
        )
    paths = [folder / name for name in names]
    columns = asked.image_column, asked.caption_column
    if stems:
        tar_rows, image, column = open_tars(asked.source, paths, *columns, asked.text)
        rows = _with(tar_rows, folder, [*map(ImageFile, listing.images), *listing.problems])
        unread = [name for name in listing.names if name not in names]
        return SourceRows(asked.source, rows, image, column, notes=say_unread(folder, unread, None))
    if by_path := _named_by_tables(asked, replace(listing, tables=names)):
        return replace(by_path, notes=by_path.notes + say_unread(folder, names, asked.image_column))
    table, image, column = open_parquet(asked.source, paths, *columns, asked.text)
    others = unlisted(folder, listing.images, table.files()) if listing.images else []
    return _of_table(asked.source, table, _with(table, folder, [*others, *listing.problems]), image, column)


def _of_table(source: str, table: TableRows, rows: ReadableRows, image: str, caption: str) -> SourceRows:
    """Returns `rows`, which begin with those of `table`, with its classes and the families of its rows."""

    def find_families() -> Families:
        return families_of_images(table.images(), len(rows))

    return SourceRows(source, rows, image, caption, _ordered(table), find_families)


def _ordered(rows: TableRows) -> tuple[str, ...] | None:
    """Returns the classes in the order that a data set itself gives to them, or None, as for captions."""
    return None if rows.class_names is None or rows.kind is not LABELS else tuple(rows.class_names)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _with(rows: ReadableRows, folder: Path, others: Sequence[ImageFile]) -> ReadableRows:
    """Returns `rows` followed by the images beside the packed files, which have no caption."""
    return JoinedRows(rows, FileRows(folder, others)) if others else rows
