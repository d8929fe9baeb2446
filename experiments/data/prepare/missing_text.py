"""Says why the images of a source have no captions or labels: what lies beside them, and the way out.

A table whose column of files has another name, or JSON whose captions have another key, is the usual reason, so that an
error names the columns or the keys that were found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from experiments.data.prepare.folders import ImageFile, json_beside
from experiments.data.prepare.listing import Asked, Listing
from experiments.data.prepare.pairing import pair
from experiments.data.prepare.path_tables import columns_of
from experiments.data.prepare.source_rows import json_keys
from experiments.data.prepare.text_columns import LABELS, TextColumn
from experiments.errors import ConfigError, did_you_mean
from experiments.text import shortened

LOOKED_AT = 16
"""The number of JSON files whose keys are shown."""
SHOWN_CHARACTERS = 200
SEPARATORS = (";", "\t", "|")
"""The signs that separate columns in tables that are not separated by commas."""


def without_text(asked: Asked, listing: Listing) -> ConfigError:
    """Returns the error for a folder of images to which neither files beside them nor tables give a text."""
    folder, endings, text = listing.folder, asked.endings, asked.text
    beside: Iterable[bytes] = json_beside(folder, listing.names, endings) if "json" in endings.captions else ()
    if contents := list(islice(beside, LOOKED_AT)):
        return no_known_key(str(folder), contents, text)
    for table in listing.tables:
        with suppress(ConfigError):  # it was read without one before
            if columns := columns_of(folder / table):
                return _names_no_files(asked, folder, table, columns)
    if text is LABELS:
        return ConfigError(
            f"SOURCE {folder} has no labels.",
            "Put the images of each class into a folder of its name, or name a table's column with --label-column.",
        )
    return ConfigError(
        f"SOURCE {folder} has no captions.",
        "Put each into a text file beside its image (cat.jpg, cat.txt), or all into metadata.jsonl with the keys "
        "file_name and caption.",
    )


def with_unread_text(asked: Asked, listing: Listing, unnamed: Sequence[ImageFile]) -> list[ImageFile]:
    """Returns images that no table names, with the reason where a file beside one has its text, which is not read then.

    JSON may describe an image otherwise.
    """
    beside = {
        listing.names[sample.place]: ending
        for sample in pair(listing.names, asked.endings)
        for ending in sample.captions
        if ending != "json" and not sample.problem
    }
    said = {name: f"no table names it, and the .{ending} beside it is not read" for name, ending in beside.items()}
    return [replace(file, elsewhere=said.get(file.name, "")) for file in unnamed]


def no_known_key(source: str, contents: Iterable[bytes], text: TextColumn) -> ConfigError:
    """Returns the error for JSON files beside images in which no key is known to hold the text."""
    keys = shortened(", ".join(sorted(json_keys(islice(contents, LOOKED_AT)))), SHOWN_CHARACTERS)
    return ConfigError(
        f"SOURCE {source} has no {text.what}: the keys in the JSON files beside images are {keys or 'none'}.",
        f"Name the right one with {text.option} json.KEY.",
    )


def _names_no_files(asked: Asked, folder: Path, table: str, columns: Sequence[str]) -> ConfigError:
    """Returns the error for a table in which no column is known to name files."""
    text, shown = asked.text, shortened(", ".join(columns), SHOWN_CHARACTERS)
    if asked.image_column not in (None, "image"):
        way_out = f"--image-column {asked.image_column!r} is none of them. "
        way_out += did_you_mean(str(asked.image_column), columns)
    elif len(columns) == 1 and any(sign in columns[0] for sign in SEPARATORS):
        way_out = "Separate its columns by commas."
    else:
        place = "images into a folder for each class" if text is LABELS else "each caption into a text file (cat.txt)"
        way_out = f"Name the column of files with --image-column, or put {place}."
    return ConfigError(f"SOURCE {folder} has no {text.what}: {table} names no files, its columns are {shown}.", way_out)
