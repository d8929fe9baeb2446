"""Finds packed images of a folder that are not read because other images lie beside them, and says so.

They are no rows of the source: an archive may hold the very images that were unpacked beside it, and a data set must
not become another one because of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from experiments.data.prepare.path_tables import holds_images
from experiments.errors import ConfigError
from experiments.text import printable

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
SHOWN_FILES = 3


def say_unread(folder: Path, names: Iterable[str], image_column: str | None) -> tuple[str, ...]:
    """Returns what is said of the archives and the Parquet files with images among `names`; nothing without any."""
    found = [name for name in names if _is_packed(folder, name, image_column)]
    if not found:
        return ()
    more = f" and {len(found) - SHOWN_FILES:,} more" if len(found) > SHOWN_FILES else ""
    return (
        f"Packed files beside other images are not read: {', '.join(map(printable, found[:SHOWN_FILES]))}{more}. To "
        "use them, unpack them, or name a folder that holds nothing else.",
    )


def _is_packed(folder: Path, name: str, image_column: str | None) -> bool:
    if name.lower().endswith(ARCHIVES):
        return True
    with suppress(ConfigError):  # such a table is no file of images
        return name.lower().endswith(".parquet") and holds_images(folder / name, image_column)
    return False
