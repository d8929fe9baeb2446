"""What happens when stdout or stderr cannot be written: the reader has gone, the disk is full, the stream is closed.

stderr is talk. Where nobody can hear it, it is lost, and the command goes on: a training must not end because a
terminal was closed or `| head -1` has read enough. stdout is data. Where it cannot be written the command says so in
one line and ends with exit code 1; in silence where its reader has gone, as other Unix tools do.
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
    """Standard output cannot be written."""

    exit_code = 1

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {(error.strerror or str(error)).lower()}.")
        self.is_reader_gone = error.errno == errno.EPIPE

    def say(self) -> None:
        """Print the one line, unless whoever started the command wanted to read no more."""
        if not self.is_reader_gone:
            print_error(str(self))


class _Output(io.FileIO):
    """A descriptor that is written until it fails; whatever comes later is dropped, so that no other error follows."""

    is_broken = False

    def write(self, content: Buffer, /) -> int:
        """Write what can be written, and pass over the rest."""
        if not self.is_broken:
            try:
                return super().write(content) or 0
            except OSError as error:
                self.is_broken = True
                self._fail(error)
        return memoryview(content).nbytes

    def _fail(self, error: OSError) -> None:
        """Nothing follows: this is how talk ends."""


class _DataOutput(_Output):
    def _fail(self, error: OSError) -> None:
        raise UnwritableOutputError(error) from error


@contextmanager
def unwritable_output_is_said() -> Iterator[None]:
    """What is printed inside may be lost without changing how the command ends."""
    try:
        yield
        sys.stdout.flush()
    except UnwritableOutputError as error:
        error.say()


def guard_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams of the same descriptors that fail in these ways.

    A descriptor that was closed (`>&-`) is given to `/dev/null`, opened for reading, so that writing to it fails and no
    file that is opened later (a row file of a run) gets its number and what libraries print.
    """
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # which gets the lowest number that is free: this one
    sys.stdout = _stream(_DataOutput(STDOUT, "w", closefd=False), sys.stdout)
    sys.stderr = _stream(_Output(STDERR, "w", closefd=False), sys.stderr, line_buffering=True)


def _stream(raw: _Output, like: TextIO | None, line_buffering: bool = False) -> TextIO:
    """`raw` with the encoding of `like`; a character that it lacks is written as an escape and is no error."""
    encoding = "utf-8" if like is None else like.encoding
    errors = "backslashreplace" if like is None or like.errors in (None, "strict") else like.errors
    if like is not None:
        like.flush()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=line_buffering or raw.isatty())
