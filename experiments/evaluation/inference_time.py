"""Seconds to generate an image, measured for many runs side by side.

Every run samples whole images, caption and null caption in one call, with the same batch, steps and guidance. Runs take
turns round by round, so that a machine that slows down slows all of them, and the median over rounds is recorded.
Routing may depend on the weights, so each run is timed with its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from experiments.data.loader import validation_set
from experiments.evaluation.generate import SamplerSettings, image_noise, sample
from experiments.evaluation.load import LoadedRun
from experiments.flow.samplers import Guidance
from experiments.records.schema import EvalRow
from experiments.training.description import device_name

METRIC = "inference_seconds_per_image"
WARM_UP_STEPS = 2


def measure_inference_time(
    runs: Sequence[LoadedRun],
    batch_images: int,
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
) -> list[EvalRow]:
    """One row per run: the median over `rounds` of the seconds per image, sampling `batch_images` at a time."""
    for run in runs:
        _time_one(run, batch_images, WARM_UP_STEPS)
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, mine in zip(runs, seconds, strict=True):
            mine.append(_time_one(run, batch_images, run.config.eval.sample_steps))
            on_round()
    return [_row(run, mine, batch_images) for run, mine in zip(runs, seconds, strict=True)]


def _time_one(run: LoadedRun, batch_images: int, num_steps: int) -> float:
    """Seconds per image of one batch."""
    config = run.config
    captions_BL = torch.cat([batch.caption_BL for batch in validation_set(config)])
    captions_BL = captions_BL.repeat(-(-batch_images // len(captions_BL)), 1)[:batch_images]
    device = next(run.model.parameters()).device
    noise = image_noise(config, range(batch_images), seed=config.data.seed).to(device)
    settings = SamplerSettings(num_steps, Guidance(config.eval.guidance))
    _synchronize()
    started = time.perf_counter()
    sample(run.model, captions_BL, noise, settings)
    _synchronize()
    return (time.perf_counter() - started) / batch_images


def _row(run: LoadedRun, seconds: Sequence[float], batch_images: int) -> EvalRow:
    settings = {
        "batch_images": batch_images,
        "steps": run.config.eval.sample_steps,
        "guidance": run.config.eval.guidance,
        "precision": run.record.precision,
        "device": device_name(),
        "num_threads": torch.get_num_threads(),
        "rounds": len(seconds),
        "slowest_seconds": max(seconds),
        "fastest_seconds": min(seconds),
    }
    return EvalRow(
        images_seen=run.images_seen,
        metric=METRIC,
        value=statistics.median(seconds),
        num_samples=batch_images * len(seconds),
        seed=run.config.data.seed,
        weights="raw",
        settings=settings,
    )


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
