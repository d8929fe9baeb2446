"""The errors that a user can cause, each with the way out.

Every `EcditError` prints as one line. Its `exit_code` is 2 for a mistake in what was asked for and 1 for a run that
failed. A programmer's mistake is an `assert`, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EcditError(Exception):
    """A user's mistake: says what is wrong and, in `hint`, the way out."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Returns one line: the message, then the hint."""
        return f"{self.message} {self.hint}".strip()


class ConfigError(EcditError):
    """A setting that does not exist, does not parse or does not fit the others."""


class SpecError(EcditError):
    """A sweep file that cannot be expanded."""


class PluginError(EcditError):
    """A plugin that cannot be imported, raises an exception, or does not keep the contract of its kind."""


class RecordError(EcditError):
    """A run folder that cannot be read or belongs to another config."""


class CheckpointError(EcditError):
    """A checkpoint that is damaged, foreign or missing."""


class OutputError(EcditError):
    """A file that is in the way of an output and is not ours to replace."""


class StorageError(EcditError):
    """A folder that cannot be written, or a disk that is full."""

    exit_code = 1


class RunFailedError(EcditError):
    """A run that started and could not finish (a non-finite loss, a lost process)."""

    exit_code = 1


def did_you_mean(word: str, choices: Iterable[str], otherwise: str = "") -> str:
    """Returns a hint that names the closest of `choices`, or when none is close says `otherwise`, or names all."""
    known = sorted(choices)
    by_lower_case = {choice.lower(): choice for choice in known}
    close = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {by_lower_case[close[0]]!r}?"
    return otherwise or f"Choose from: {', '.join(known)}."
