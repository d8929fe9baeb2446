"""Measures how fast latents are read, which `ecdit bench data` prints beside what B trains per second on an H100.

How many images B would train on follows from its FLOPs per image and an assumed share of the accelerator's peak; it was
not measured. The rate at which this machine copies from memory to memory is shown beside the reading rate, because it
is an upper limit of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from experiments.benchmarks.measures import Progress

MODEL, DEVICE = "B", "H100"
UTILISATIONS = (0.35, 0.5)
"""Shares of the peak that published mixtures of experts and dense transformers reach; plans are priced at the first."""
CAPTION_TOKENS = (30, 60, 120)
"""Tokens of a usual web caption, of a long one, and the most that are kept.

Text features are nearly all of the bytes that are read.
"""
WANTED_TIMES = 3
"""The loader should be at least this many times as fast as the training."""


def bench_reading(gib: float, rounds: int, clock_name: str, progress: Progress) -> list[dict[str, Any]]:
    """Returns a row for each caption length and number of threads.

    With the `cpu` clock only one thread is measured, because CPU seconds of several threads add up.
    """
    clock = process_time if clock_name == "cpu" else perf_counter
    with progress("reading latents", rounds * len(CAPTION_TOKENS)) as advance:
        from experiments.benchmarks.latent_reading import measure_copying

        copied = {threads: measure_copying(threads, gib / 2, rounds, clock) for threads in thread_counts(clock_name)}
        return [row for tokens in CAPTION_TOKENS for row in _rows(tokens, gib, rounds, clock, copied, advance)]


def _rows(
    tokens: int, gib: float, rounds: int, clock: Callable[[], float], copied: Mapping[int, float],
    advance: Callable[[], None],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    import tempfile

    from experiments.benchmarks.latent_reading import bytes_per_image, measure_reading, reading_config, write_random_set
    from experiments.config.budget import budget
    from sweeps.devices import DEVICES

    with tempfile.TemporaryDirectory(prefix="ecdit-bench-") as name:
        config = reading_config(Path(name), MODEL, write_random_set(Path(name), tokens, gib))
        measured = measure_reading(config, tuple(copied), rounds, clock, advance)
    flops = budget(config).train_flops_per_image
    for threads, read in measured.items():
        row: dict[str, Any] = {
            "what": "latents", "model": MODEL, "device": DEVICE, "caption_tokens": tokens,
            "bytes_per_image": bytes_per_image(tokens), "batch_images": config.train.batch_images,
            "threads": threads, "loader_images_per_second": read, "train_flops_per_image": flops,
            "wanted_ratio": WANTED_TIMES, "loader_bytes_per_second": read * bytes_per_image(tokens),
            "copied_bytes_per_second": copied[threads],
        }  # fmt: skip
        for share in UTILISATIONS:
            trained = DEVICES[DEVICE].peak_flops_per_second * share / flops
            percent = round(100 * share)
            row |= {f"trained_at_{percent}_percent": trained, f"ratio_at_{percent}_percent": read / trained}
        yield row


def thread_counts(clock_name: str) -> tuple[int, ...]:
    """Returns the numbers of threads to measure: 1, 2, 4, 8 up to the cores here, and the loader's default."""
    if clock_name == "cpu":
        return (1,)
    from experiments.data.loader import MAX_THREADS, loader_threads

    cores = os.cpu_count() or 1
    return tuple(sorted({1, loader_threads(), *(n for n in (2, 4, MAX_THREADS) if n <= cores)}))
