"""Remembers which rows of the registries plugins have added, and names a plugin in the errors of its own code.

A plugin is somebody else's code, so that any exception can come out of it. `plugin_errors` makes one line of each, with
the plugin's own file and line in it. `loading.py` adds rows, and `runs.py` records them with a run.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from experiments.errors import EcditError, PluginError
from experiments.out_of_memory import out_of_memory
from experiments.text import printable, shortened

LONGEST_REASON = 200


@dataclass(frozen=True)
class PluginSource:
    """Tells where rows come from: `place` for messages, and the file, whose frames in a traceback are the plugin's."""

    place: str
    file: str


SOURCES: dict[tuple[str, str], PluginSource] = {}
"""The source of every row that a plugin has added, by the word of its kind (`router`) and its name."""


def is_plugin(kind: str, name: str) -> bool:
    """Says whether a plugin has added this row."""
    return (kind, name) in SOURCES


def named_plugin(kind: str, name: str) -> str:
    """Returns the name of a plugin's row after its file or package, for messages."""
    return f"{SOURCES[kind, name].place}: {kind} {name!r}"


@contextmanager
def plugin_errors(kind: str, name: str) -> Iterator[None]:
    """Turns any exception of a plugin's code into a `PluginError` that names the plugin, its file and its line.

    Does nothing where the row is ours. A lack of memory, and errors that name their cause already, stay as they are. A
    run that has begun ends with `RunFailedError` instead, which `training/ending.py` makes of a `PluginError`.
    """
    try:
        yield
    except Exception as error:
        if not is_plugin(kind, name) or isinstance(error, EcditError) or out_of_memory(error) is not None:
            raise
        reason = said_by(error, SOURCES[kind, name].file)
        raise PluginError(f"{named_plugin(kind, name)} failed: {reason}.", "Correct the plugin.") from error


def said_by(error: BaseException, file: str) -> str:
    """Returns the line of `file` at which `error` came about, its type and its message, on one line."""
    if isinstance(error, SyntaxError) and error.filename in (file, None):
        line, message = error.lineno, error.msg
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line, message = (frames[-1].lineno if frames else None), str(error)
    where = f"line {line}: " if line else ""
    if isinstance(error, EcditError):  # a row that was refused: its message says what is wrong without our class
        return where + on_one_line(error.message).rstrip(". :")
    return f"{where}{type(error).__name__}: {on_one_line(message)}".rstrip(". :")


def on_one_line(text: str) -> str:
    """Returns `text` of a plugin for a message."""
    return shortened(printable(" ".join(text.split())), LONGEST_REASON)
