"""Says where the text of an image is looked for: its caption, or the label of its class.

Both are read by the same code from the same places: a column of a table, a file beside an image, a member of a tar, or
a key in JSON. What differs is which names are tried, and what messages call it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TextColumn:
    """Describes one kind of text: its option, its word in messages, and the names under which it is looked for."""

    option: str
    what: str
    one: str
    """Its word in messages about a single row."""
    columns: tuple[str, ...]
    """Names of columns in order of preference. A dot leads to a key inside a column of JSON."""
    endings: tuple[str, ...]
    """Endings of files; one of them is chosen for the whole source, the first of those that most images have."""
    keys: tuple[str, ...]
    """Keys inside files of JSON, in order of preference."""


CAPTIONS = TextColumn(
    option="--caption-column",
    what="captions",
    one="caption",
    columns=("caption", "text", "txt", "captions", "prompt", "json.caption", "json.text"),
    endings=("txt", "caption", "text", "json"),
    keys=("caption", "text", "captions", "prompt"),
)
LABELS = TextColumn(
    option="--label-column",
    what="labels",
    one="label",
    columns=("label", "class", "cls", "labels", "class_name", "json.label", "json.class"),
    endings=("cls", "label", "class", "json"),
    keys=("label", "class", "cls"),
)

_SIDES = re.compile(r"\b(?:(?:left|right)(?:ward|wards|most|hand|handed)?|(?:counter|anti)?-?clockwise)\b")


def names_side(text: str) -> bool:
    """Says whether a text names a side or a sense of rotation, so that it would be wrong of the mirrored image."""
    return _SIDES.search(text.lower().replace("_", " ")) is not None
