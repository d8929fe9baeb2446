"""Finds files of a folder that are not read because of others beside them, and says so.

Packed images are no rows of the source: an archive may hold the very images that were unpacked beside it, and a data
set must not become another one because of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from experiments.data.prepare.listing import Asked, Listing
from experiments.data.prepare.path_tables import all_tables, holds_images
from experiments.errors import ConfigError
from experiments.text import printable

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
SHOWN_FILES = 3
UNUSED = "Not used: "


def say_unread(folder: Path, names: Iterable[str], image_column: str | None) -> tuple[str, ...]:
    """Returns what is said of the archives and the Parquet files with images among `names`; nothing without any."""
    found = [name for name in names if _is_packed(folder, name, image_column)]
    if not found:
        return ()
    return (
        f"Packed files beside other images are not read: {_listed(found)}. To use them, unpack them, or name a folder "
        "that holds nothing else.",
    )


def say_unread_tables(asked: Asked, listing: Listing) -> list[str]:
    """Returns what is said of tables beside the metadata that are read; of those with images `say_unread` says it."""
    others = [name for name in all_tables(listing.names) if name not in listing.tables]
    found = [name for name in others if not _is_packed(listing.folder, name, asked.image_column)]
    where = f"the {asked.text.what} are read from {_listed(listing.tables)}"
    return [f"{UNUSED}{_listed(found)}, because {where}. To use their rows, add them there."] if found else []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_FILES:,} more" if len(names) > SHOWN_FILES else ""
    return ", ".join(map(printable, names[:SHOWN_FILES])) + more


def _is_packed(folder: Path, name: str, image_column: str | None) -> bool:
    if name.lower().endswith(ARCHIVES):
        return True
    with suppress(ConfigError):  # such a table is no file of images
        return name.lower().endswith(".parquet") and holds_images(folder / name, image_column)
    return False
