"""Measures the cost of generating an image for many runs side by side: seconds, peak memory and FLOPs.

Every run samples whole images, caption and null caption in one call, with the same batch, steps and guidance. Runs take
turns round by round, so that a machine that slows down slows all of them; the median over rounds is recorded. Routing
may depend on the weights, so that each run is timed with its own.

Peak memory is that of all tensors alive at once, weights included. On an accelerator it is the peak of the allocator;
on a CPU, where a process has no such number, it is counted operation by operation. FLOPs are those of the budget, times
the number of passes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker

from experiments.evaluation.sampling.generate import (
    SamplerSettings,
    empty_of,
    image_noise,
    sample,
    validation_captions,
)
from experiments.evaluation.sampling.load_run import LoadedRun, current_device
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiTOutput
from experiments.records.record_types import EvalRow
from experiments.training.description import device_name

SECONDS = "inference_seconds_per_image"
PEAK_MEMORY = "inference_peak_memory_gib"
FLOPS = "inference_flops_per_image"
BYTES_PER_GIB = 2**30


@dataclass(frozen=True)
class Overhead:
    """The costs of a run relative to dense of the same depth, as a share (0.2: 20% more).

    The paper reports 3% in theory and 23% measured.
    """

    params_active: float
    flops: float
    seconds: float


def measure_inference(
    runs: Sequence[LoadedRun],
    settings: Sequence[SamplerSettings],
    batch_images: int,
    rounds: int,
    on_turn: Callable[[int, int], None] = lambda round_number, place: None,
) -> list[list[EvalRow]]:
    """Returns the rows of each run, which samples `batch_images` at a time by its entry of `settings`.

    Seconds per image are the median over `rounds`. `on_turn` is called before each turn of a run with the number of the
    round, which is 0 while memory and FLOPs are measured, and with the place of the run in `runs`.
    """
    jobs = [_Job(run, of_run, batch_images) for run, of_run in zip(runs, settings, strict=True)]
    peaks, flops = [], []
    for place, job in enumerate(jobs):
        on_turn(0, place)
        peaks.append(job.peak_memory_gib())
        flops.append(job.flops_per_image())
    seconds: list[list[float]] = [[] for _ in runs]
    for round_number in range(1, rounds + 1):
        for place, (job, mine) in enumerate(zip(jobs, seconds, strict=True)):
            on_turn(round_number, place)
            mine.append(job.seconds_per_image())
    return [
        job.rows({SECONDS: statistics.median(mine), PEAK_MEMORY: peak, FLOPS: flop}, mine)
        for job, mine, peak, flop in zip(jobs, seconds, peaks, flops, strict=True)
    ]


def overhead_over_dense(
    runs: Sequence[LoadedRun], settings: Sequence[SamplerSettings], seconds: Sequence[float]
) -> list[Overhead | None]:
    """Returns the overhead of each run over the dense runs of the same preset, depth and width; None without one.

    A dense run counts only where it sampled by the same settings.
    """
    found: list[Overhead | None] = []
    for run, how, mine in zip(runs, settings, seconds, strict=True):
        dense = [
            (other, theirs)
            for other, beside, theirs in zip(runs, settings, seconds, strict=True)
            if beside == how and _is_dense_of(other, run)
        ]
        if not dense or run.config.routing.name == "dense":
            found.append(None)
            continue
        reference = dense[0][0].record
        base_seconds = statistics.median(theirs for _, theirs in dense)
        found.append(
            Overhead(
                params_active=run.record.params_active / reference.params_active - 1,
                flops=run.record.flops_per_image / reference.flops_per_image - 1,
                seconds=mine / base_seconds - 1,
            )
        )
    return found


def _is_dense_of(dense: LoadedRun, run: LoadedRun) -> bool:
    """Returns whether `dense` is the backbone of `run` without its experts, for the same task and in its precision."""
    return dense.config.routing.name == "dense" and _task(dense) == _task(run)


def _task(run: LoadedRun) -> tuple[object, ...]:
    """Returns what a run and its dense baseline share: the backbone, the form of the data, the objective, precision."""
    data = run.config.data.model_copy(update={"path": None, "seed": 0})
    return run.config.model, data, run.config.flow, run.precision


@dataclass(frozen=True)
class _Job:
    """One run with the settings of its sampler."""

    run: LoadedRun
    settings: SamplerSettings
    batch_images: int

    def peak_memory_gib(self) -> float:
        """Returns the peak of one call with both branches of guidance, after a call that warms the model up."""
        one_call = SamplerSettings(1, Guidance(self.settings.guidance.scale))
        self._sample(one_call)
        device = current_device()
        if device.type != "cpu":
            others = torch.accelerator.memory_allocated() - self._weight_bytes()
            torch.accelerator.reset_peak_memory_stats()
            # A watched call is not replayed. A replayed one uses memory that was allocated when it was recorded.
            self._sample(one_call, lambda time, output: None)
            return float(torch.accelerator.max_memory_allocated() - others) / BYTES_PER_GIB
        tracker = MemTracker()
        tracker.track_external(self.run.model)
        with tracker:
            self._sample(one_call)
        return float(tracker.get_tracker_snapshot("peak")[device]["Total"]) / BYTES_PER_GIB

    def _weight_bytes(self) -> int:
        model = self.run.model
        return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

    def flops_per_image(self) -> float:
        """Returns the forward FLOPs of one image times the number of its passes through the model."""
        passes = 0

        def count(time: float, output: DiTOutput) -> None:
            nonlocal passes
            passes += output.velocity_BKP.shape[0]

        self._sample(self.settings, count)
        return self.run.record.flops_per_image * passes / self.batch_images

    def seconds_per_image(self) -> float:
        """Returns the seconds of one batch, divided by its images."""
        _synchronize()
        started = time.perf_counter()
        self._sample(self.settings)
        _synchronize()
        return (time.perf_counter() - started) / self.batch_images

    def rows(self, values: dict[str, float], seconds: Sequence[float]) -> list[EvalRow]:
        """Returns one row per value."""
        guidance = self.settings.guidance
        settings: dict[str, Any] = {
            "batch_images": self.batch_images,
            "steps": self.settings.num_steps,
            "guidance": guidance.scale,
            "guidance_start": guidance.start,
            "guidance_stop": guidance.stop,
            "sampler": self.settings.sampler,
            "precision": self.run.precision,
            "device": device_name(),
            "num_threads": torch.get_num_threads(),
        }
        if guidance.channels is not None:  # absent where all are guided, as in the rows of samples
            settings["guidance_channels"] = guidance.channels
        spread = {"rounds": len(seconds), "slowest_seconds": max(seconds), "fastest_seconds": min(seconds)}
        return [
            EvalRow(
                images_seen=self.run.images_seen,
                metric=metric,
                value=value,
                num_samples=self.batch_images * (len(seconds) if metric == SECONDS else 1),
                seed=self.run.config.data.seed,
                weights=self.run.weights,
                settings=settings | (spread if metric == SECONDS else {}),
            )
            for metric, value in values.items()
        ]

    def _sample(self, settings: SamplerSettings, watch: Callable[[float, DiTOutput], None] | None = None) -> Tensor:
        config = self.run.config
        captions = validation_captions(config, self.batch_images)
        empty = empty_of(self.run.model, config, captions)
        noise = image_noise(config, range(self.batch_images), seed=config.data.seed).to(current_device())
        return sample(self.run.model, captions, noise, settings, watch, empty)


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
