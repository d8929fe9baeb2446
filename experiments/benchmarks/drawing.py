"""Measures how fast data is made, in total and by part, for `ecdit bench data`."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from experiments.config.schema import RunConfig
from experiments.data.counter import Stream, normals
from experiments.data.loader import TrainStream


def measure_loader(config: RunConfig, num_images: int = 8192) -> dict[str, float]:
    """Returns images per second of one thread, and microseconds per image of the whole batch and of its parts.

    About `num_images` images are made once, after a batch to warm up, by the same calls that training makes. The parts
    are those of the data set (`ImageSource.parts`), and the noise.
    """
    stream, size = TrainStream(config), config.train.batch_images
    num_batches = max(1, num_images // size)
    batch_seconds = _seconds(lambda first: stream.batch(first), num_batches, size)

    num_values = config.data.channels * config.data.image_size**2
    parts = {
        **stream.source.parts(size),
        "noise": lambda first: normals(config.seed, Stream.TRAIN_NOISE, range(first, first + size), num_values),
    }
    microseconds = {name: 1e6 * _seconds(part, num_batches, size) / size for name, part in parts.items()}
    return {
        "image_size": config.data.image_size,
        "batch_images": size,
        "num_images": num_batches * size,
        "images_per_second": size / batch_seconds,
        "batch_microseconds_per_image": 1e6 * batch_seconds / size,
        **{f"{name}_microseconds_per_image": value for name, value in microseconds.items()},
    }


def _seconds(call: Callable[[int], object], num_batches: int, size: int) -> float:
    """Returns the mean seconds of `call` over consecutive batches."""
    call(0)
    started = perf_counter()
    for number in range(1, num_batches + 1):
        call(number * size)
    return (perf_counter() - started) / num_batches
