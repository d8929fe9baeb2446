"""Measures how fast latents and text features of real networks' sizes are read, to compare with training's needs.

The data set holds random numbers with the shapes of latents of 256-pixel images (a VAE with 4 channels and a factor of
8), T5-XXL and CLIP-L features, and is read as training reads it. It is larger than a processor's caches and fits the
operating system's page cache, so the disk is not measured. `ecdit bench data` prints the result.

Legend: N images, M text tokens, C channels, H rows, W columns, V width of T5 features, U width of CLIP features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from experiments.config.overrides import load_config
from experiments.config.prepared_set import (
    INDEX_FILE,
    SCHEMA_VERSION,
    Encoder,
    FileEntry,
    SetSplit,
    Shard,
    Source,
    fingerprint_of,
)
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.data.order import shuffled
from experiments.records.storage import write_json_atomic

CHANNELS, LATENT_SIZE, TEXT_WIDTH, POOLED_WIDTH, MAX_TOKENS = 4, 32, 4096, 768, 120
BATCH_IMAGES = 256
SHARD_IMAGES = 256
VALIDATION_IMAGES = 1
COPIED_BYTES = 2**20
Clock = Callable[[], float]


def bytes_per_image(num_tokens: int) -> int:
    """Returns the bytes that are read for an image whose caption has `num_tokens` tokens."""
    return 2 * (2 * CHANNELS * LATENT_SIZE**2 + num_tokens * TEXT_WIDTH + POOLED_WIDTH)


def write_random_set(folder: Path, num_tokens: int, gib: float) -> int:
    """Writes a data set of about `gib` GiB with captions of `num_tokens` tokens; returns its number of images."""
    num_images = max(4, int(gib * 2**30 / bytes_per_image(num_tokens)))
    empty = _write(folder, "empty-caption", 1, num_tokens=1)
    shards = [_shard(folder, "validation", 0, VALIDATION_IMAGES, num_tokens)]
    for number, first in enumerate(range(0, num_images, SHARD_IMAGES)):
        shards.append(_shard(folder, "train", number, min(SHARD_IMAGES, num_images - first), num_tokens))
    write_index(folder, shards, empty, num_images)
    return num_images


def write_index(folder: Path, shards: Sequence[dict[str, Any]], empty: dict[str, Any], num_images: int) -> None:
    """Writes the index of a data set of latents with these entries of shards and of the empty caption."""
    encoder = Encoder(path="random", kind="random", sha256="").model_dump()
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "image_size": 8 * LATENT_SIZE, "latent_size": LATENT_SIZE,
        "channels": CHANNELS, "caption_length": MAX_TOKENS, "text_width": TEXT_WIDTH, "pooled_width": POOLED_WIDTH,
        "scaling_factor": 0.13025, "shift_factor": 0.0, "vae": encoder, "t5": encoder, "clip": encoder,
        "source": Source(path="random", num_rows=num_images, image_column="", caption_column="").model_dump(),
        "empty_caption": empty, "shards": list(shards), "num_damaged": 0,
    }  # fmt: skip
    write_json_atomic(folder / INDEX_FILE, content | {"fingerprint": fingerprint_of(content)})


def reading_config(folder: Path, model: str, num_images: int) -> RunConfig:
    """Returns the config of a dense run of `model` that reads the data set once, in an accelerator's batches."""
    batch = min(BATCH_IMAGES, num_images // 2)
    return load_config(
        [f"model={model}", "routing=dense", "data.name=latents", f"data.path={folder}", f"train.batch_images={batch}",
         f"train.images={num_images // batch * batch}"]
    )  # fmt: skip


def measure_reading(
    config: RunConfig,
    thread_counts: tuple[int, ...],
    rounds: int,
    clock: Clock = perf_counter,
    on_round: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """Returns images per second by number of threads: the median of `rounds` interleaved passes over the data set."""
    stream = TrainStream(config)
    seconds: dict[int, list[float]] = {threads: [] for threads in thread_counts}
    _pass(stream, max(thread_counts), clock)
    for _ in range(rounds):
        for threads in thread_counts:
            seconds[threads].append(_pass(stream, threads, clock))
        on_round()
    return {threads: config.train.images / median(passes) for threads, passes in seconds.items()}


def measure_copying(num_threads: int, gib: float, rounds: int, clock: Clock = perf_counter) -> float:
    """Returns the bytes per second that threads copy in pieces of a caption's size, an upper bound for reading."""
    num_pieces = max(num_threads, int(gib * 2**30 / COPIED_BYTES))
    source, target = (np.ones((num_pieces, COPIED_BYTES), dtype=np.uint8) for _ in range(2))
    order = shuffled(0, np.arange(num_pieces), num_pieces)

    def copy(first: int) -> None:
        for place in range(first, num_pieces, num_threads):
            target[place] = source[order[place]]

    seconds = []
    with ThreadPoolExecutor(num_threads) as threads:
        for _ in range(rounds):
            started = clock()
            list(threads.map(copy, range(num_threads)))
            seconds.append(clock() - started)
    return num_pieces * COPIED_BYTES / median(seconds)


def _pass(stream: TrainStream, threads: int, clock: Clock) -> float:
    started = clock()
    for batch in stream.iterate(0, threads):
        del batch  # as in training: it is gone before the next is asked for
    return clock() - started


def _shard(folder: Path, split: SetSplit, number: int, num_images: int, num_tokens: int) -> dict[str, Any]:
    entry = _write(folder, f"{split}-{number:05d}", num_images, num_tokens)
    counts = {"num_images": num_images, "num_tokens": num_images * num_tokens}
    return Shard(**entry, split=split, source_sha256="", **counts).model_dump(exclude_none=True)


def _write(folder: Path, name: str, num_images: int, num_tokens: int) -> dict[str, Any]:
    """Writes one file as `prepare` does, but without a real checksum, which reading does not check."""
    path, generator = folder / f"{name}.safetensors", torch.Generator().manual_seed(num_images)

    def random(*shape: int) -> Tensor:
        """Returns a tensor that repeats the same random megabyte, as values do not matter."""
        some = torch.rand(1 << 19, generator=generator).half()
        return some.repeat(-(-torch.Size(shape).numel() // len(some)))[: torch.Size(shape).numel()].view(shape)

    latents = (num_images, CHANNELS, LATENT_SIZE, LATENT_SIZE)
    tensors = {
        "latent_mean_NCHW": random(*latents),
        "latent_std_NCHW": random(*latents),
        "text_MV": random(num_images * num_tokens, TEXT_WIDTH),
        "text_start_N1": torch.arange(num_images + 1) * num_tokens,
        "pooled_NU": random(num_images, POOLED_WIDTH),
        "row_N": torch.arange(num_images),
    }
    save_file(tensors, path)
    return FileEntry(file=path.name, num_bytes=path.stat().st_size, sha256="").model_dump()
