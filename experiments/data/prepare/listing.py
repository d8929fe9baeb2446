"""Holds what a user asks of a source, and what lies in its folder: by both it is decided how the source is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.data.prepare.folders import ImageFile
from experiments.data.prepare.pairing import Endings
from experiments.data.prepare.text_columns import LABELS, TextColumn


@dataclass(frozen=True)
class Asked:
    """Holds the user's request: the source and its columns; a column that is None is found by its type and name."""

    source: str
    image_column: str | None
    caption_column: str | None
    text: TextColumn

    @property
    def wants_folders(self) -> bool:
        """Says whether folders may be classes: labels are asked for, and no column is named."""
        return self.text is LABELS and self.caption_column is None

    @property
    def endings(self) -> Endings:
        """Returns the endings of files that hold images and text; the default names of columns are no endings."""
        image = None if self.image_column == "image" else self.image_column
        return Endings.asked(image, None if self.caption_column == "caption" else self.caption_column, self.text)


@dataclass(frozen=True)
class Listing:
    """Lists a folder: all files, those that are images or tables, and the subfolders that cannot be read."""

    folder: Path
    names: Sequence[str]
    images: Sequence[str]
    tables: Sequence[str]
    problems: Sequence[ImageFile]
