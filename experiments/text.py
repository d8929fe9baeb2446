"""Makes text from other sources safe to show: names of runs and folders, reasons of failures, captions.

Such text is data. It may hold escape sequences that move a terminal's cursor, line breaks that break a table,
characters that reverse the reading direction, or surrogates that cannot be encoded. `printable` writes all of these out
as escapes. Characters that have a meaning only in some destination (HTML, Markdown, rich's markup, matplotlib's
mathtext) are escaped where that destination is written.
"""

from __future__ import annotations

import unicodedata

_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's control characters, format characters, surrogates, and separators of lines and paragraphs."""

ELLIPSIS = "…"


def printable(text: str) -> str:
    """Returns `text` on one line, with every unprintable character written as `\\x1b`, `\\n` or `\\udc80`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(each) if unicodedata.category(each) in _UNSAFE_CATEGORIES else each for each in text)


def encodable(text: str) -> str:
    """Returns `text` with every surrogate written as `\\udc80`, and everything else unchanged.

    Names that are not valid Unicode hold surrogates, which UTF-8 cannot encode.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(text: str, num_characters: int) -> str:
    """Returns `text`, with its middle replaced by an ellipsis where it is longer than `num_characters`.

    Names of runs begin with the model and end with the settings that differ, so that both ends are kept.
    """
    if len(text) <= num_characters:
        return text
    num_kept = max(0, num_characters - len(ELLIPSIS))
    num_last = num_kept // 2
    return text[: num_kept - num_last] + ELLIPSIS + (text[-num_last:] if num_last else "")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message without a full stop, or the name of its class."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def agreeing(number: int, one: str, many: str) -> str:
    """Returns the form of a verb or pronoun that agrees with `number` things: `1 of 2 runs has`, `2 of 2 runs have`."""
    return one if number == 1 else many
