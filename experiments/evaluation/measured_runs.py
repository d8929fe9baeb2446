"""Measures many trained runs one after another, or in turns, and adds the values to their records.

`score.py` measures the samples of one run, and `inference_time.py` the cost of generating an image. This module loads
the runs, reports those that cannot be loaded, and says which values are measured already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from experiments.config.data_sets import image_kinds
from experiments.config.metrics import default_metrics
from experiments.config.schema import RunConfig
from experiments.errors import CheckpointError, EcditError, RecordError
from experiments.evaluation.exchange.imports import dsg_rows, geneval_rows
from experiments.evaluation.inference.inference_time import (
    FLOPS,
    SECONDS,
    Overhead,
    measure_inference,
    overhead_over_dense,
)
from experiments.evaluation.metrics.sampled_metric import UserFiles
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.evaluation.sampling.load_run import LoadedRun, load_run
from experiments.evaluation.sampling.settings import Conditions
from experiments.evaluation.score import RunScorer, load_resources
from experiments.flow.samplers import Guidance
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import RunDir
from experiments.records.writer import append_evaluations
from experiments.training.host_memory import keep_freed_memory
from experiments.training.reconstructed_average import require_widths

Loaded = TypeVar("Loaded")


class Show(Protocol):
    """Shows how far the work is: how much of it is done, and which part of it begins."""

    def __call__(self, done: float, total: float) -> None:
        """Shows `done` of `total`."""

    def part(self, doing: str) -> None:
        """Names the part that begins now."""

    def say(self, line: str) -> None:
        """Prints one line."""


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `ecdit evaluate`, which say how runs are measured. None stands for the run's own settings."""

    images: int
    scales: tuple[float, ...] | None
    interval: tuple[float, float]
    steps: int | None
    shift: float | None
    sampler: str
    weights: Literal["raw", "ema"]
    widths: tuple[float, ...] | None
    """The widths of averages to be reconstructed. None stands for the weights that `weights` names."""
    precision: Literal["fp32", "bf16"] | None
    seed: int | None
    batch_images: int
    rounds: int
    inception_weights: Path | None
    clip_model: Path | None
    again: bool
    channels: int | None = None
    """The number of channels that are guided. None stands for all."""

    def conditions(self, run: LoadedRun, scale: float) -> Conditions:
        """Returns the conditions for one run at one guidance scale. Raises `ConfigError` where they do not fit it."""
        config = run.config
        guidance = Guidance(scale, *self.interval, self.channels)
        sampler = SamplerSettings.asked(config, self.steps, guidance, self.shift, self.sampler)
        seed = config.data.seed if self.seed is None else self.seed
        return Conditions(self.images, self.batch_images, seed, self.weights, run.precision, sampler, run.ema_width)

    def load(self, folder: RunDir, width: float | None, tell: Callable[[str], None]) -> LoadedRun:
        """Loads a run, with an average of `width` where one is given."""
        return load_run(folder, self.weights, tell, self.precision, width)

    def scales_of(self, config: RunConfig) -> tuple[float, ...]:
        """Returns the guidance scales to measure a run at."""
        return self.scales or (config.eval.guidance,)


@dataclass(frozen=True)
class MeasuredRun:
    """The measured rows of one run at one guidance scale, and of a reconstructed average at one width."""

    folder: Path
    """The folder of the run. Runs of several sweeps may have the same name."""
    guidance: float
    rows: list[EvalRow]
    overhead: Overhead | None = None
    ema_width: float | None = None

    @property
    def run(self) -> str:
        """Returns the name of the run."""
        return self.folder.name


def measure_samples(
    folders: Sequence[RunDir], metrics: Sequence[str] | None, how: EvaluateOptions, show: Show
) -> list[MeasuredRun]:
    """Samples each run at each guidance scale, measures what is missing, and records each result immediately.

    Where `metrics` is None they are those that its data have by default.
    """
    measured: list[MeasuredRun] = []
    resources = load_resources(metrics or (), UserFiles(how.inception_weights, how.clip_model))
    widths = how.widths or (None,)
    if how.widths is not None:  # all are checked before the first images are sampled, which takes minutes
        require = partial(require_widths, widths=how.widths, say=show.say)
        folders = [folder for folder, _ in _loaded(folders, lambda folder, _: require(folder), show.say)]
    total = len(folders) * len(widths)
    for number, (folder, run) in enumerate(_loaded(folders, partial(how.load, tell=show.say), show.say, widths)):
        wanted = default_metrics(image_kinds(run.config)) if metrics is None else metrics
        keep_freed_memory(run.config)
        scales = how.scales_of(run.config)
        for place, scale in enumerate(scales):
            scorer = RunScorer(run, wanted, how.conditions(run, scale), resources, how.again)
            width = "" if run.ema_width is None else f"EMA width {run.ema_width:g}, "
            at = f"{folder.path.name}, {width}guidance {scale:g}"
            if scorer.recorded:
                show.say(f"{at}: {', '.join(scorer.recorded)} recorded already.")
            done, each = number + place / len(scales), 1 / len(scales)
            show.part(at)
            show(done, total)
            rows = scorer.measure(partial(_show_share, show, total, done, each))
            measured.append(MeasuredRun(folder.path, scale, rows, ema_width=run.ema_width))
    return measured


def _loaded(
    folders: Sequence[RunDir],
    load: Callable[[RunDir, float | None], Loaded],
    tell: Callable[[str], None],
    widths: Sequence[float | None] = (None,),
) -> Iterator[tuple[RunDir, Loaded]]:
    """Yields what `load` returns for each run and width of its average; `tell` gets the reason where it fails.

    Raises the last error where nothing can be loaded.
    """
    num_loaded, last = 0, None
    for folder, width in product(folders, widths):
        try:
            loaded = load(folder, width)
        except (RecordError, CheckpointError) as error:
            last = error
            if len(folders) > 1:
                tell(f"Left out: {folder.path}: {error}")
            continue
        num_loaded += 1
        yield folder, loaded
    if last is not None and num_loaded == 0:
        raise last


def _show_share(show: Show, total: float, done: float, each: float, share: float) -> None:
    """Shows that `done` parts of `total` and a `share` of the next part, whose length is `each`, are complete."""
    show(done + each * share, total)


def measure_time(folders: Sequence[RunDir], how: EvaluateOptions, show: Show) -> list[MeasuredRun]:
    """Times the generation of images by all runs, which take turns."""
    runs = [each for _, each in _loaded(folders, partial(how.load, tell=show.say), show.say)]
    folders = [run.run_dir for run in runs]
    keep_freed_memory(runs[0].config)
    scales = list(dict.fromkeys(scale for run in runs for scale in how.scales_of(run.config)))
    measured: list[MeasuredRun] = []
    for scale in scales:
        settings = [how.conditions(run, scale).sampler for run in runs]
        show.part(f"timing {len(runs)} runs, guidance {scale:g}")
        on_turn = partial(_show_turn, show, [folder.path.name for folder in folders], how.rounds)
        rows = measure_inference(runs, settings, how.batch_images, how.rounds, on_turn)
        for folder, of_run in zip(folders, rows, strict=True):
            append_evaluations(folder, of_run)
        values = [{row.metric: row.value for row in of_run} for of_run in rows]
        seconds, flops = ([of_run[metric] for of_run in values] for metric in (SECONDS, FLOPS))
        overheads = overhead_over_dense(runs, settings, seconds, flops)
        measured += [
            MeasuredRun(folder.path, scale, of_run, overhead)
            for folder, of_run, overhead in zip(folders, rows, overheads, strict=True)
        ]
    return measured


def _show_turn(show: Show, names: Sequence[str], num_rounds: int, round_number: int, place: int) -> None:
    """Shows which run is measured now; in a log that is a line for each run, and then one for each round."""
    if round_number == 0:
        show.part(f"memory and FLOPs of {names[place]} ({place + 1} of {len(names)})")
    elif place == 0:
        show.part(f"timing round {round_number} of {num_rounds}")
    show(round_number * len(names) + place, (1 + num_rounds) * len(names))


def joined(first: Sequence[MeasuredRun], second: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Returns the rows of both, those of one run and guidance scale together."""
    merged = {(one.folder, one.guidance): one for one in first}
    for other in second:
        key = (other.folder, other.guidance)
        mine = merged.get(key)
        merged[key] = replace(other, rows=[*mine.rows, *other.rows]) if mine else other
    return list(merged.values())


def import_results(
    folders: Sequence[RunDir], geneval: Path | None, dsg: Path | None, how: EvaluateOptions,
    tell: Callable[[str], None],
) -> list[MeasuredRun]:  # fmt: skip
    """Adds the results of GenEval's or DSG's own programs to the records of the run that they belong to."""
    if len(folders) != 1:
        raise EcditError(
            f"{len(folders)} runs are named, but the results are of one.", "Name the run whose images were judged."
        )
    if how.widths is not None and len(how.widths) > 1:
        raise EcditError("Several widths of the average for one file of results.", "Name the one: --ema 0.1.")
    run = how.load(folders[0], how.widths[0] if how.widths else None, tell)
    scales = how.scales_of(run.config)
    if len(scales) > 1:
        raise EcditError(
            "Several guidance scales are given for one file of results.",
            "Name the scale of the judged images, for example --guidance 4.",
        )
    base = how.conditions(run, scales[0]).row(run.config, run.images_seen)
    rows = [] if geneval is None else geneval_rows(geneval, base)
    rows += [] if dsg is None else dsg_rows(dsg, base)
    append_evaluations(run.run_dir, rows)
    return [MeasuredRun(run.run_dir.path, scales[0], rows)]
