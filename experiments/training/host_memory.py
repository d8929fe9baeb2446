"""How the memory of a processor is handed to torch: in large pages, and what is freed is kept for the next tensor.

Fresh memory costs a fault for each page of 4 KiB, and glibc gives back at once what is larger than 32 MiB, so that
every step would pay for its activations and gradients again (docs/benchmarks). Nothing here concerns an accelerator.
"""

from __future__ import annotations

import ctypes
import os
import platform

from experiments.config.schema import RunConfig

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of `mallopt` in glibc's malloc.h."""
NEVER = -1


def prefer_large_pages(config: RunConfig) -> None:
    """Let torch ask Linux for pages of 2 MiB under large tensors. What the environment says wins.

    Not with `train.implementation=reference`. Torch looks once in a process, when it makes its first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1" if config.train.implementation == "fast" else "0")


def keep_freed_memory(config: RunConfig) -> None:
    """For the rest of this process, which then keeps the most it ever took: for commands, and not for a library.

    Nothing with `train.implementation=reference`, with another C library, and where the environment chose already.
    """
    if config.train.implementation == "fast" and platform.libc_ver()[0] == "glibc" and not _allocator_is_chosen():
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)


def _allocator_is_chosen() -> bool:
    return any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
