"""Turns a failed allocation into one line with its size, whether Python, NumPy, PyTorch or the loader tried it.

Each of these raises its own exception with its own text. This module does not import torch, so that commands without
torch can use it.
"""

from __future__ import annotations

import errno
import re
import resource

from experiments.errors import EcditError

FAILED = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory: you tried|out of memory|bad_alloc|ALLOC_FAILED"
    r"|failed to map segment|can't start new thread",
    re.IGNORECASE,
)
SIZE = re.compile(r"(?:allocate|mmap) ([0-9.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE)
UNITS = ("bytes", "kib", "mib", "gib", "tib", "pib", "eib")
GIB = 2**30


class OutOfMemoryError(EcditError):
    """The machine, or the limit of this process, does not have enough memory for what was asked."""

    exit_code = 1


def out_of_memory(error: BaseException) -> OutOfMemoryError | None:
    """Returns the error to raise instead of `error` where that reports a failed allocation, else None."""
    has_failed = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or FAILED.search(str(error)) is not None
    )
    if not has_failed:
        return None
    size = SIZE.search(str(error))
    allocation = "an allocation"
    if size is not None:
        num_bytes = float(size.group(1)) * 1024 ** UNITS.index(size.group(2).lower())
        allocation += f" of {num_bytes / GIB:,.2f} GiB"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    allowed = "" if limit == resource.RLIM_INFINITY else f" This process may use {limit / GIB:,.1f} GiB (ulimit -v)."
    return OutOfMemoryError(
        f"Not enough memory: {allocation} failed.{allowed}", "Use a smaller model or batch, or allow more memory."
    )
