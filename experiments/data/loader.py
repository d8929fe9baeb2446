"""Makes the batches of training, and the fixed validation set that all runs share.

Everything random about image i comes from counters at i. It therefore does not depend on batch size, rank or world, and
a run that resumes at `images_seen` gets the batches that it would have got without the interruption. The images come
from the source of the data set (`sources/contract.py`) and depend on `data.seed`. Time, noise, mask and caption dropout
depend on `seed`, so runs with different seeds see the same images and differ in the rest. The objective (`flow`) draws
the times of training. The validation set depends on neither `seed` nor `flow`, so all runs are compared on the same
images, noise and signal-to-noise ratios.

Legend: B images of a batch, C channels, H rows, W columns, L caption length, T tokens of an image, K kept tokens, V, U
widths of precomputed text features, of tokens and pooled.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.data.counter import Floats, Stream, normals, uniforms
from experiments.data.sources.image_source import ImageSource, open_source
from experiments.flow.objective_contract import logit_normal, objective_of

PREFETCHED_BATCHES = 3
"""The number of batches made ahead of the one in use, so that a slow one does not stall training."""
CORES_PER_THREAD = 4
"""A process uses one thread that makes batches for every so many cores; the other cores compute or launch kernels."""
MAX_THREADS = 8


@dataclass(frozen=True)
class Batch:
    """Holds what one forward pass of training or validation needs."""

    index_B: Tensor
    """The index of each image in its split, as int64."""
    pixels_BCHW: Tensor
    """Pixels in [-1, 1], or latents of about unit variance, as float32."""
    noise_BCHW: Tensor
    """Standard normal noise, as float32."""
    time_B: Tensor
    """Times in (0, 1) on the straight path, t = sigma / (alpha + sigma), as float32."""
    keep_BK: Tensor | None
    """The sorted indices of the tokens that training keeps, as int64; None where it keeps all."""
    caption_BL: Tensor | None = None
    """Token ids as int64, with the null caption where it was dropped; None where the data set has features."""
    text_BLV: Tensor | None = None
    """Features of the caption's tokens as float16, 0 at padding; those of the empty caption where it was dropped."""
    text_length_B: Tensor | None = None
    """The number of tokens of each caption without padding, as int64."""
    pooled_BU: Tensor | None = None
    """Features of the whole caption, as float16."""
    label_B: Tensor | None = None
    """Classes as int64, with the null class where the label was dropped; None where the run reads captions."""

    @property
    def caption(self) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Returns the captions for the model: token ids, classes, or features, lengths and pooled features."""
        if self.caption_BL is not None:
            return self.caption_BL
        if self.label_B is not None:
            return self.label_B
        assert self.text_BLV is not None
        assert self.text_length_B is not None
        assert self.pooled_BU is not None
        return self.text_BLV, self.text_length_B, self.pooled_BU


class TrainStream:
    """Makes the training data of one rank, which are a pure function of the number of images seen."""

    def __init__(self, config: RunConfig, rank: int = 0, world: int = 1) -> None:
        """Opens the images for process `rank` of `world`, among which each batch is divided."""
        assert 0 <= rank < world, f"rank {rank} of {world}"
        assert config.train.batch_images % world == 0, f"{config.train.batch_images} images over {world} ranks"
        self.config, self.source = config, open_source(config.data)
        self.rank = rank
        self.share = config.train.batch_images // world

    def batch(self, images_seen: int) -> Batch:
        """Returns this rank's contiguous part of the global batch that starts at image `images_seen`."""
        config, first = self.config, images_seen + self.rank * self.share
        images = range(first, first + self.share)
        dropped_B = uniforms(config.seed, Stream.TRAIN_DROPOUT, images, 1)[:, 0] < config.train.caption_dropout
        uniform_B = uniforms(config.seed, Stream.TRAIN_TIME, images, 1)[:, 0]
        return Batch(
            **self.source.training(images, torch.from_numpy(dropped_B)),
            noise_BCHW=_noise(config, config.seed, Stream.TRAIN_NOISE, images),
            time_B=objective_of(config.flow).draw_times(torch.from_numpy(uniform_B)),
            keep_BK=_kept_tokens(config, images),
        )

    def iterate(self, images_seen: int, num_threads: int | None = None) -> Iterator[Batch]:
        """Yields the batches from `images_seen` to `train.images`, made ahead by `loader_threads` threads by default.

        Every batch is full: the horizon is rounded up to whole batches.
        """
        positions = range(images_seen, self.config.train.images, self.config.train.batch_images)
        num_threads = num_threads or loader_threads()
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(num_threads, thread_name_prefix="data") as workers:
            try:
                for position in positions:
                    waiting.append(workers.submit(self.batch, position))
                    if len(waiting) >= PREFETCHED_BATCHES + num_threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # a caller that stops early does not wait for batches that nobody will use
                workers.shutdown(wait=False, cancel_futures=True)


def loader_threads() -> int:
    """Returns the number of threads that make batches, from the process's cores; it does not change the batches."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_THREADS, cores // processes // CORES_PER_THREAD))


def validation_set(config: RunConfig) -> list[Batch]:
    """Returns the fixed (image, t, noise) of `eval.images` images in batches, with captions and all tokens.

    t is standard logit-normal. Its quantiles follow van der Corput's sequence, so that the times of every batch, of any
    size, spread evenly over the distribution, and triple i is the same whatever the sizes. The last batch may be short.
    """
    source = open_source(config.data)
    return [
        _validation_batch(config, source, images, _spread_quantiles(config, images)) for images in _eval_ranges(config)
    ]


def same_time_batches(config: RunConfig) -> list[Batch]:
    """Returns the images and noise of `validation_set`, with one t in each batch, as in sampling.

    The times are the middles of equal strata of the same distribution, one for each batch.
    """
    ranges, source = _eval_ranges(config), open_source(config.data)
    return [
        _validation_batch(config, source, images, np.full(len(images), (place + 0.5) / len(ranges)))
        for place, images in enumerate(ranges)
    ]


def _eval_ranges(config: RunConfig) -> list[range]:
    total, size = config.eval.images, config.eval.batch_images
    return [range(first, min(first + size, total)) for first in range(0, total, size)]


def _validation_batch(config: RunConfig, source: ImageSource, images: range, quantile_B: Floats) -> Batch:
    """Returns a batch of the validation split at given quantiles of t, which does not depend on the run's seed."""
    return Batch(
        **source.validation(images),
        noise_BCHW=_noise(config, config.data.seed, Stream.VALIDATION_NOISE, images),
        time_B=logit_normal(torch.from_numpy(quantile_B), 0.0, 1.0),
        keep_BK=None,
    )


def _spread_quantiles(config: RunConfig, images: range) -> Floats:
    """Returns van der Corput's sequence in base 2 (the bits of i mirrored at the point), shifted by a random number."""
    shift = uniforms(config.data.seed, Stream.VALIDATION_TIME, range(1), 1)[0, 0]
    mirrored_B = np.array([int(f"{image:032b}"[::-1], 2) for image in images]) * 2.0**-32
    quantile_B: Floats = np.clip((mirrored_B + shift) % 1.0, 1e-6, 1 - 1e-6)
    return quantile_B


def _noise(config: RunConfig, seed: int, stream: Stream, images: range) -> Tensor:
    """Returns standard normal noise, [B, C, H, W]."""
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    noise = normals(seed, stream, images, int(np.prod(shape)))
    return torch.from_numpy(noise).reshape(len(images), *shape)


def _kept_tokens(config: RunConfig, images: range) -> Tensor | None:
    """Returns the tokens of each image that training keeps, [B, K], drawn uniformly from the subsets of that size."""
    if config.train.mask_ratio == 0:
        return None
    # The K smallest of T independent uniform numbers stand at a uniformly drawn subset of places.
    rank_BT = uniforms(config.seed, Stream.TRAIN_MASK, images, config.num_tokens)
    chosen_BK = np.argsort(rank_BT, axis=1, kind="stable")[:, : config.num_train_tokens]
    return torch.from_numpy(np.sort(chosen_BK, axis=1))
