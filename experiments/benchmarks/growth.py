"""`ecdit bench growth` measures with which power seconds and memory grow with what a user can make larger.

An exponent is the slope of the logarithm of seconds, or of bytes, against that of the size, over the upper half of the
sizes, where constant costs no longer hide it. Beside it stands the largest exponent that the work itself has, and why.
Memory is the most that is alive at once and was allocated meanwhile: tensors beyond weights and their gradients for
layers, the resident memory of one process for training, and Python's objects for everything else.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.measures import Progress
from experiments.environment import child_environment
from experiments.errors import EcditError, RunFailedError

Cost = tuple[float, float]
"""Seconds and bytes."""
WIDTH, TOKENS, EXPERTS, HEAD_SIZE = 64, 4096, 8, 16
"""The sizes of a layer along which nothing is varied."""
IMAGE_TOKENS = 256
STEPS_OF_TRAINING, BATCH = 8, 32
SHARD_IMAGES = 1000
LEEWAY = 0.1
"""An exponent may be so much above the one that the work has, for what measuring adds."""


@dataclass(frozen=True)
class Growth:
    """Describes one measurement: what is done, over the sizes of what, and the largest exponents that it may have."""

    what: str
    over: str
    sizes: tuple[int, ...]
    measure: Callable[[int], Cost]
    seconds_exponent: float
    bytes_exponent: float
    why: str
    is_long: bool = False
    """Such a measurement is made once, because it takes long and its many parts even out."""


def bench_growth(overrides: list[str], steps: int, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """Measures with which power seconds and memory grow with tokens, experts, width, processes, images and runs."""
    if overrides:
        raise EcditError("ecdit bench growth takes no settings: it varies them itself.", "Leave them out.")
    axes = growth_axes()
    with progress("sizes", sum(len(axis.sizes) for axis in axes)) as advance:
        return measure_growth(axes, rounds, advance)


def measure_growth(
    axes: Sequence[Growth], rounds: int, on_size: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Returns a row for each of `axes`, from the medians of `rounds`; `on_size` is called after each size."""
    rows = []
    for axis in axes:
        seconds, held = [], []
        for size in axis.sizes:
            costs = [axis.measure(size) for _ in range(1 if axis.is_long else rounds)]
            seconds.append(statistics.median(cost[0] for cost in costs))
            held.append(statistics.median(cost[1] for cost in costs))
            on_size()
        exponents = exponent(axis.sizes, seconds), exponent(axis.sizes, held)
        rows.append({
            "what": axis.what,
            "over": axis.over,
            "smallest": axis.sizes[0],
            "largest": axis.sizes[-1],
            "largest_seconds": seconds[-1],
            "largest_bytes": held[-1],
            "seconds_exponent": exponents[0],
            "seconds_limit": axis.seconds_exponent,
            "bytes_exponent": exponents[1],
            "bytes_limit": axis.bytes_exponent,
            "is_met": exponents[0] <= axis.seconds_exponent + LEEWAY and exponents[1] <= axis.bytes_exponent + LEEWAY,
            "why": axis.why,
        })  # fmt: skip
    return rows


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Returns the slope of log cost against log size over the upper half of the sizes, of two of them at least."""
    upper = slice(min(len(sizes) // 2, len(sizes) - 2), None)
    logs = [math.log(max(cost, 1e-9)) for cost in costs[upper]]
    return statistics.linear_regression([math.log(size) for size in sizes[upper]], logs).slope


def growth_axes() -> tuple[Growth, ...]:
    """Returns everything that is measured."""
    return (
        Growth(
            "a step of the routed layer", "tokens", (256, 1024, 4096, 16_384),
            lambda tokens: _layer_cost(_routed(WIDTH, EXPERTS), tokens), 1, 1, "a token has as many slots as before",
        ),
        Growth(
            "a step of self-attention", "tokens of an image", (256, 1024, 4096, 16_384), _attention_cost, 2, 1,
            "every token attends to all others; the scores are not stored",
        ),
        Growth(
            "a step of the routed layer", "experts", (8, 16, 32, 64, 128, 256),
            lambda experts: _layer_cost(_routed(WIDTH, experts), TOKENS), 1, 1,
            "as many slots as before, and each expert's weights are read and have gradients",
        ),
        Growth(
            "a step of the routed layer", "width", (64, 128, 256, 512),
            lambda width: _layer_cost(_routed(width, EXPERTS), TOKENS), 2, 1, "matrices of width times width",
        ),
        Growth(
            "a step of training, with a process's memory", "processes", (1, 2, 4), _training_cost, 1, 0,
            "the same batch: as long where the processes share a machine's cores, and less where they do not", True,
        ),
        Growth(
            "the order of an epoch", "images of a data set", (10**3, 10**4, 10**5, 10**6, 10**7), _order_cost, 1, 1,
            "every place is computed by itself",
        ),
        Growth(
            "opening a data set", "images of a data set", (10**3, 10**4, 10**5, 10**6, 10**7), _index_cost, 1, 1,
            f"an entry for each shard of {SHARD_IMAGES:,} images",
        ),
        Growth(
            "the status of a sweep", "runs", (10, 100, 1000, 10_000, 100_000), _status_cost, 1, 1,
            "a few small files for each run", True,
        ),
    )  # fmt: skip


def _routed(width: int, experts: int) -> list[str]:
    return ["model=nano", f"model.width={width}", f"routing.num_experts={experts}", "routing=expert_choice"]


def _layer_cost(settings: list[str], tokens: int) -> Cost:
    """Returns the cost of one step of a routed layer, forward and backward, on images of `IMAGE_TOKENS` tokens."""
    from experiments.config.overrides import load_config
    from experiments.layers.feed_forward import build_feed_forward

    config = load_config(settings)
    layer = build_feed_forward(config, config.sparse_layer_indices[0])
    shape = (tokens // IMAGE_TOKENS, IMAGE_TOKENS, config.model.width)
    return _step_cost(layer, shape, lambda x_BTD: layer(x_BTD).out_BTD)


def _attention_cost(tokens: int) -> Cost:
    """Returns the cost of one step of self-attention within one image."""
    from experiments.layers.attention import Attention

    layer = Attention(WIDTH, WIDTH // HEAD_SIZE, WIDTH // HEAD_SIZE)
    return _step_cost(layer, (1, tokens, WIDTH), lambda x_BTD: layer(x_BTD, x_BTD))


def _step_cost(layer: Any, shape: Sequence[int], forward: Callable[[Any], Any]) -> Cost:
    """Returns the cost of a step; memory is counted in another one before it, because counting is slow."""
    import torch

    from experiments.benchmarks.layer_memory import peak_bytes

    def step() -> Sequence[torch.Tensor]:
        x = torch.randn(*shape, requires_grad=True)
        return torch.autograd.grad(forward(x).sum(), [x, *layer.parameters()])[1:]

    held = peak_bytes(step)
    return _timed(step), held


def _training_cost(processes: int) -> Cost:
    """Returns the seconds of a training step by so many processes on one batch, and the memory of the first process."""
    from experiments.records.run_folder import RunDir

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        images = STEPS_OF_TRAINING * BATCH
        settings = (
            "model=nano", "routing=expert_choice", f"train.batch_images={BATCH}", f"train.images={images}",
            f"log.every_images={BATCH}", f"optim.warmup_images={BATCH}", f"eval.every_images={images}", "eval.images=8",
            f"parallel.expert_parallel={processes}", "eval.sample_images=0", "wandb.mode=disabled",
        )  # fmt: skip
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        command = [sys.executable, *launcher, "-m", "ecdit_cli", "train", *settings, "--run-dir", str(run.path)]
        # The other rows measure the processor too, and a machine with one accelerator has none for a second process.
        environment = child_environment({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("error:")] or [done.stderr[-500:]]
            raise RunFailedError(f"Training by {processes} processes failed: {said[0].removeprefix('error: ')}")
        rates = [json.loads(line)["images_per_second"] for line in run.steps.read_text().splitlines()]
        status = run.read_status()
        assert status is not None
        return BATCH / statistics.median(rates[1:]), (status.peak_memory_gib or 0) * 2**30


def _order_cost(images: int) -> Cost:
    """Returns the cost of the order of all images of an epoch."""
    import numpy as np

    from experiments.data.order import shuffled

    return _python_cost(lambda: shuffled(0, np.arange(images), images))


def _index_cost(images: int) -> Cost:
    """Returns the cost of reading and checking the index of a data set; its tensors are not there."""
    from experiments.benchmarks.latent_reading import write_index
    from experiments.config.prepared_set import FileEntry, Shard, read_index

    empty = FileEntry(file="empty.safetensors", num_bytes=1, sha256="").model_dump()
    shards = [
        Shard(
            file=f"train-{number:05d}.safetensors", num_bytes=1, sha256="", source_sha256="", num_images=SHARD_IMAGES,
            num_tokens=SHARD_IMAGES, split="train" if number else "validation",
        ).model_dump(exclude_none=True)
        for number in range(1 + images // SHARD_IMAGES)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), shards, empty, images)
        return _python_cost(partial(read_index, Path(folder)))


def _status_cost(runs: int) -> Cost:
    """Returns the cost of reading the states of all runs of a sweep."""
    from experiments.benchmarks.executor_cost import measure_plan, write_finished_runs
    from sweeps.progress import read_sweep

    with tempfile.TemporaryDirectory() as folder:
        write_finished_runs(Path(folder), measure_plan(runs)[0])
        return _python_cost(partial(read_sweep, Path(folder)))


def _python_cost(work: Callable[[], object]) -> Cost:
    """Returns the seconds of `work`, and the memory of Python's objects in another pass, as tracing is slow."""
    seconds = _timed(work)
    gc.collect()
    tracemalloc.start()
    try:
        kept = work()
        held = tracemalloc.get_traced_memory()[1]
        del kept
    finally:
        tracemalloc.stop()
    return seconds, held


def _timed(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
