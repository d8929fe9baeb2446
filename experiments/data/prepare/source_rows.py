"""Defines a row of a source, an encoded image and its caption, and checks both, as they are untrusted input.

A row that cannot be used is not an error of the whole source: `UnusableRowError` carries its name and the reason, and
whoever encodes lists it. Captions are text or nothing: bytes are decoded by their byte order mark or as UTF-8, and what
is neither is not guessed at, because a wrong guess would be trained on without a word.
"""

from __future__ import annotations

import codecs
import errno
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from experiments.data.prepare.text_columns import CAPTIONS, LABELS, TextColumn
from experiments.errors import RunFailedError
from experiments.inputs import unique_keys
from experiments.text import printable, shortened

MAX_IMAGE_BYTES = 2**28
MAX_CAPTION_BYTES = 2**20
"""The largest image file and the largest caption file (of JSON, which may describe much else) that are read."""
MAX_CAPTION_CHARACTERS = 2**16
PASSING_FAULTS = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
})  # fmt: skip
"""The errors of a storage or a machine that may work again the next time; they say nothing about the file that was
read."""
SHOWN_CHARACTERS = 200

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Row:
    """Holds one encoded image, its caption or label (None where there is none), and its name in messages."""

    content: bytes
    caption: str | None
    name: str
    elsewhere: str = ""
    """Says why it has no caption although one is there, in a file that is not read."""


class UnusableRowError(Exception):
    """Raised for a row that cannot be used, with the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class ReadableRows(Protocol):
    """A source of rows that can be read in any order and from several threads."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def read(self, number: int) -> Row:
        """Returns row `number`. Raises `UnusableRowError` where it cannot be used."""

    def text(self, number: int) -> str | None:
        """Returns the caption or label of a row, without its image. Raises `UnusableRowError` as `read` does."""


@contextmanager
def listed_as(name: str) -> Iterator[None]:
    """Turns errors in the files and the text of one row into an `UnusableRowError` with the reason.

    Raises `RunFailedError` for a fault of the storage, as `raise_if_passing` says.
    """
    try:
        yield
    except OSError as error:
        raise_if_passing(error, name)
        reason = error.strerror or str(error)
        raise UnusableRowError(name, reason[:1].lower() + reason[1:]) from error
    except UnicodeError as error:
        raise UnusableRowError(name, "its text is not UTF-8") from error
    except RecursionError as error:
        raise UnusableRowError(name, "its JSON is nested too deeply") from error
    except ValueError as error:
        raise UnusableRowError(name, str(error)) from error


def raise_if_passing(error: OSError, name: str) -> None:
    """Raises `RunFailedError` for one of `PASSING_FAULTS`: a row that was left out for it would stay out for good."""
    if error.errno in PASSING_FAULTS:
        raise RunFailedError(
            f"{shortened(printable(name), SHOWN_CHARACTERS)} cannot be read: {(error.strerror or str(error)).lower()}.",
            "This is a fault of the storage or of the machine. When it has passed, the same command continues; if it "
            "stays, replace this file or folder.",
        ) from error


def decode_text(content: bytes, errors: str = "strict") -> str:
    """Decodes text by its byte order mark, or as UTF-8 without one. Raises `UnicodeError` for other bytes."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors)
    return content.decode("utf-8", errors)


def as_caption(value: object, text: TextColumn = CAPTIONS) -> str | None:
    """Returns the caption in a column's value, or of several the first that is not blank; None where there is none.

    With `text` of labels it is the label. Raises `ValueError` with the reason where the value is no text that can be
    trusted.
    """
    if isinstance(value, list):
        return next((found for each in value if (found := as_caption(each, text)) is not None), None)
    if isinstance(value, bytes):
        value = decode_text(value)
    if text is LABELS and isinstance(value, bool | float):
        value = _label_of(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"its {text.one} is no text")
    if "\0" in value:
        raise ValueError(f"its {text.one} holds NUL bytes, as UTF-16 without a byte order mark does")
    if len(value) > MAX_CAPTION_CHARACTERS:
        raise ValueError(f"its {text.one} is longer than {MAX_CAPTION_CHARACTERS:,} characters")
    value.encode()  # a surrogate is a byte that was not UTF-8
    return value.strip() or None


def _label_of(value: bool | float) -> str | None:
    """Returns the label that is stored as a truth value, or as a float.

    pandas makes floats of whole numbers where one of them is missing, and NaN of that one. Raises `ValueError` for
    other floats.
    """
    if isinstance(value, bool):
        return str(value)
    if math.isnan(value):
        return None
    if not value.is_integer():
        raise ValueError(f"its label {value} is no whole number")
    return str(int(value))


def caption_in(content: bytes, keys: tuple[str, ...], text: TextColumn = CAPTIONS) -> str | None:
    """Returns the caption in a caption file: its whole text, or the value to which `keys` lead in JSON."""
    return as_caption(look_up(parse_json(decode_text(content)), ".".join(keys)) if keys else content, text)


def find_json_key(contents: Iterable[bytes], num_sampled: int, text: TextColumn = CAPTIONS) -> str | None:
    """Returns the key that holds the text in JSON files, or None where no file has one of `text.keys`.

    It is the first of them that one of the first `num_sampled` files has, or else that of the next file with one.
    """
    files = iter(contents)
    found = json_keys(islice(files, num_sampled))
    while not any(key in found for key in text.keys):
        following = next(files, None)
        if following is None:
            return None
        found = json_keys([following])
    return next(key for key in text.keys if key in found)


def json_keys(contents: Iterable[bytes]) -> set[str]:
    """Returns all keys that JSON files have; a file that is no JSON has none, and is listed when its row is read."""
    found: set[str] = set()
    for content in contents:
        with suppress(ValueError, RecursionError):
            found |= parse_json(decode_text(content)).keys()
    return found


def parse_json(text: str) -> Mapping[str, Any]:
    """Parses a JSON object. Raises `ValueError` for other text, and for a key that is there twice."""
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a column, whose name may hold dots; otherwise a dot leads into a column of JSON."""
    if name in row:
        return row[name]
    column, dot, key = name.partition(".")
    inside = row.get(column)
    return look_up(inside, key) if dot and isinstance(inside, dict) else None
