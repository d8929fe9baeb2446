"""The C library keeps memory that training frees, instead of giving it back to the system at every step.

glibc maps each block of more than 32 MiB anew and returns it when it is freed, so each big activation is paid for
with page faults: a third of a matmul's time where faults are dear. Told not to, it hands the same pages out again.
What a process holds then falls only when it ends; `docs/benchmarks` has the effect on time and on the peak. Other
systems and other allocators (jemalloc by LD_PRELOAD, musl) are left as they are, and so is a process whose user has
set glibc's own variables. `train.implementation=reference` leaves it all off.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""From glibc's malloc.h, part of its interface."""
NEVER = -1
TOP_PAD_BYTES = 16 * 2**20
"""The heap grows by at least this much at a time."""


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Once for this process, from now on; whether anything was changed."""
    chosen = any(name.startswith("MALLOC_") for name in environment) or "malloc" in environment.get(
        "GLIBC_TUNABLES", ""
    )
    if chosen or environment.get("LD_PRELOAD") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD_BYTES))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
