"""A command keeps the memory that it has freed on a processor, and holds it in large pages.

A step of training frees and allocates the same gigabytes again. New memory costs a page fault for every 4 KiB, so that
freed memory is kept for the next tensor; and a large page of 2 MiB takes the place of 512 faults. Torch can ask for
large pages itself (`THP_MEM_ALLOC_ENABLE`), but then aligns every tensor to 2 MiB. glibc before 2.38 finds no freed
block for an aligned request, and training took 1.46 times the memory (docs/benchmarks). Here the whole heap is advised.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

from experiments.config.schema import RunConfig

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of `mallopt`, from glibc's malloc.h."""
NEVER = -1
MADV_HUGEPAGE = 14
"""The advice of `madvise` that a range is to have large pages, from Linux's mman.h."""


def keep_freed_memory(config: RunConfig) -> None:
    """Makes glibc keep freed memory until the process ends; commands may call this, but a library should not.

    Half of the memory that the machine has is reserved as addresses of the heap, which then ask for large pages; a page
    takes memory only when it is first written. `train.implementation=reference` turns it off. It does nothing with
    another C library, and where the environment already configures the allocator.
    """
    if not config.train.is_fast or platform.libc_ver()[0] != "glibc" or _allocator_is_chosen():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    _reserve_in_large_pages()


@cache
def _reserve_in_large_pages() -> None:
    """Extends the heap by half of the machine's memory, and asks for large pages; once in a process.

    A process whose heap has more addresses than the machine has memory could not be forked.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free(libc.malloc(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2))  # null where it is refused
    for first, last in _heap():
        libc.madvise(first, last - first, MADV_HUGEPAGE)  # refused by a kernel without large pages, which is no fault


def _heap() -> list[tuple[int, int]]:
    """Returns the first address of the heap, and the one behind its last."""
    heaps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]")]
    return [(int(first, 16), int(last, 16)) for first, last in (each.split("-") for each in heaps)]


def _allocator_is_chosen() -> bool:
    return any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
