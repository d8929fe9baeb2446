"""Sets up host memory for training on a CPU: large pages, and freed memory that is kept for the next tensor.

Fresh memory costs a page fault for every 4 KiB, and glibc returns blocks above 32 MiB to the system as soon as they are
freed, so that every step would pay again for its activations and gradients (docs/benchmarks). Memory of accelerators is
not affected.
"""

from __future__ import annotations

import ctypes
import os
import platform

from experiments.config.schema import RunConfig

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of `mallopt`, from glibc's malloc.h."""
NEVER = -1


def prefer_large_pages(config: RunConfig) -> None:
    """Makes torch ask Linux for pages of 2 MiB for large tensors, unless the environment says otherwise.

    `train.implementation=reference` turns it off. Torch reads the variable once, when it allocates its first tensor, so
    this must be called before.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1" if config.train.implementation != "reference" else "0")


def keep_freed_memory(config: RunConfig) -> None:
    """Makes glibc keep freed memory until the process ends; commands may call this, but a library should not.

    It does nothing with `train.implementation=reference`, with another C library, and where the environment already
    configures the allocator.
    """
    if config.train.implementation != "reference" and platform.libc_ver()[0] == "glibc" and not _allocator_is_chosen():
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)


def _allocator_is_chosen() -> bool:
    return any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
