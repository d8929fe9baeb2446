"""Calls a function for many runs on all cores, where there are so many that starting processes pays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

MIN_RUNS_FOR_PROCESSES = 400
"""Starting processes costs about a second: below this many runs one process is faster."""
RUNS_AT_ONCE = 64
"""The runs that a process reads together, which is as often as progress is shown."""

Given = TypeVar("Given")
Answer = TypeVar("Answer")


def on_all_cores(function: Callable[[Given], Answer], parts: Sequence[Given], num_runs: int) -> Iterator[Answer]:
    """Yields `function(part)` for each part, in their order; together the parts have `num_runs` runs."""
    num_cores = min(os.cpu_count() or 1, len(parts))
    if num_cores < 2 or num_runs < MIN_RUNS_FOR_PROCESSES:
        yield from map(function, parts)
        return
    # Libraries such as Arrow have started threads, and a forked child could wait for ever for a lock of theirs.
    with ProcessPoolExecutor(num_cores, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, parts)
