"""Measures the cost of generating an image for many runs side by side: seconds, peak memory and FLOPs.

Every run samples whole images, caption and null caption in one call, with the same batch, steps and guidance. Runs take
turns round by round, so that a machine that slows down slows all of them; the median over rounds is recorded. Routing
may depend on the weights, so that each run is timed with its own. Captions and noise are made before the clock runs.

Peak memory is that of all tensors alive at once, weights included. On an accelerator it is the peak of the allocator;
on a CPU, where a process has no such number, it is counted operation by operation. FLOPs are those of the budget with
the expert slots that each pass computed, since these can follow the tokens, the batch and the branch of guidance.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._pytree import tree_leaves

from experiments.config.budget import executed_flops_per_image
from experiments.evaluation.sampling.generate import (
    SamplerSettings,
    empty_of,
    image_noise,
    moved,
    sample,
    validation_captions,
)
from experiments.evaluation.sampling.load_run import LoadedRun, current_device
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiTOutput
from experiments.models.embed import Caption
from experiments.records.record_types import EvalRow
from experiments.routing.stats import slots_of_image
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
    runs: Sequence[LoadedRun], settings: Sequence[SamplerSettings], seconds: Sequence[float], flops: Sequence[float]
) -> list[Overhead | None]:
    """Returns the overhead of each run over the dense runs of the same preset, depth and width; None without one.

    A dense run counts only where it sampled by the same settings. `seconds` and `flops` are those of an image.
    """
    found: list[Overhead | None] = []
    measured = list(zip(runs, settings, seconds, flops, strict=True))
    for run, how, mine, my_flops in measured:
        dense = [each for each in measured if each[1] == how and _is_dense_of(each[0], run)]
        if not dense or run.config.routing.name == "dense":
            found.append(None)
            continue
        reference, _, _, base_flops = dense[0]
        base_seconds = statistics.median(theirs for _, _, theirs, _ in dense)
        found.append(
            Overhead(
                params_active=run.record.params_active / reference.record.params_active - 1,
                flops=my_flops / base_flops - 1,
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
            others = torch.accelerator.memory_allocated() - self._held_bytes()
            torch.accelerator.reset_peak_memory_stats()
            # A watched call is not replayed. A replayed one uses memory that was allocated when it was recorded.
            self._sample(one_call, lambda time, output: None)
            return float(torch.accelerator.max_memory_allocated() - others) / BYTES_PER_GIB
        tracker = MemTracker()
        tracker.track_external(self.run.model, *tree_leaves(self._inputs))
        with tracker:
            self._sample(one_call)
        return float(tracker.get_tracker_snapshot("peak")[device]["Total"]) / BYTES_PER_GIB

    def _held_bytes(self) -> int:
        """Returns the bytes that this run holds between two calls: its weights, and what it is sampled from."""
        model = self.run.model
        tensors: list[Tensor] = [*model.parameters(), *model.buffers(), *tree_leaves(self._inputs)]
        return sum(tensor.nbytes for tensor in tensors)

    def flops_per_image(self) -> float:
        """Returns the forward FLOPs that were executed for one image, over all of its passes through the model."""
        config, total = self.run.config, 0.0

        def count(time: float, output: DiTOutput) -> None:
            nonlocal total
            of_image: float = self.run.record.flops_per_image
            if config.sparse_layer_indices:
                slots = float(slots_of_image(output.feed_forward))
                of_image = executed_flops_per_image(config, slots, training=False)
            total += of_image * output.velocity_BKP.shape[0]

        self._sample(self.settings, count)
        return total / self.batch_images

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

    @cached_property
    def _inputs(self) -> tuple[Caption, Caption, Tensor]:
        """Returns captions, as many empty ones, and noise on the device.

        They are made once, because rendering the images of the captions and drawing noise is no part of sampling.
        """
        config, device = self.run.config, current_device()
        captions = moved(validation_captions(config, self.batch_images), device)
        noise_BCHW = image_noise(config, range(self.batch_images), seed=config.data.seed)
        return captions, empty_of(self.run.model, config, captions), noise_BCHW.to(device)

    def _sample(self, settings: SamplerSettings, watch: Callable[[float, DiTOutput], None] | None = None) -> Tensor:
        captions, empty, noise_BCHW = self._inputs
        return sample(self.run.model, captions, noise_BCHW, settings, watch, empty)


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
