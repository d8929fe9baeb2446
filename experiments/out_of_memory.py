"""An allocation that fails, as one line with its size, whoever tried: Python, NumPy, PyTorch, or the system's loader.

Each has its own exception and its own words. Free of torch, so that a command without it can ask too.
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
    """There is not enough memory for what was asked, in the machine or within the limit of this process."""

    exit_code = 1


def out_of_memory(error: BaseException) -> OutOfMemoryError | None:
    """What to raise in the place of `error` where it says that an allocation failed; None where it does not."""
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
