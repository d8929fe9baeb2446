"""Handles a stdout or stderr that cannot be written: its reader has gone, the disk is full, or it is closed.

stderr carries progress and errors. Where it cannot be written, these are lost and the command goes on: a training must
not end because a terminal was closed or because `| head -1` has read enough. stdout carries data. Where it cannot be
written, the command says so in one line and ends with exit code 1; where its reader has gone it says nothing, as other
Unix tools do.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from ecdit_cli._console import print_error
from experiments.errors import EcditError

if TYPE_CHECKING:
    from typing_extensions import Buffer

STDIN, STDOUT, STDERR = 0, 1, 2


class UnwritableOutputError(EcditError):
    """Raised when standard output cannot be written."""

    exit_code = 1

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {(error.strerror or str(error)).lower()}.")
        self.is_reader_gone = error.errno == errno.EPIPE

    def say(self) -> None:
        """Prints the error, unless the reader has gone and so wants to read no more."""
        if not self.is_reader_gone:
            print_error(str(self))


class _Output(io.FileIO):
    """A descriptor that is written until it fails. Later output is dropped, so that no other error follows."""

    is_broken = False

    def write(self, content: Buffer, /) -> int:
        """Writes `content`, or drops it after a failure."""
        if not self.is_broken:
            try:
                return super().write(content) or 0
            except OSError as error:
                self.is_broken = True
                self._fail(error)
        return memoryview(content).nbytes

    def _fail(self, error: OSError) -> None:
        """Does nothing: lost progress output is no error."""


class _DataOutput(_Output):
    def _fail(self, error: OSError) -> None:
        raise UnwritableOutputError(error) from error


@contextmanager
def unwritable_output_is_said() -> Iterator[None]:
    """Reports a failure to print inside this block without changing how the command ends."""
    try:
        yield
        sys.stdout.flush()
    except UnwritableOutputError as error:
        error.say()


def guard_streams() -> None:
    """Replaces `sys.stdout` and `sys.stderr` by streams of the same descriptors that fail in these ways.

    A closed descriptor (`>&-`) is opened as `/dev/null` for reading, so that writing to it fails. Otherwise a file that
    is opened later (a row file of a run) would get its number, and with it what libraries print.
    """
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # it gets the lowest free number, which is this one
    sys.stdout = _stream(_DataOutput(STDOUT, "w", closefd=False), sys.stdout)
    sys.stderr = _stream(_Output(STDERR, "w", closefd=False), sys.stderr, line_buffering=True)


def _stream(raw: _Output, like: TextIO | None, line_buffering: bool = False) -> TextIO:
    """Returns a text stream of `raw` with the encoding of `like`; characters that the encoding lacks are escaped."""
    encoding = "utf-8" if like is None else like.encoding
    errors = "backslashreplace" if like is None or like.errors in (None, "strict") else like.errors
    if like is not None:
        like.flush()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=line_buffering or raw.isatty())
