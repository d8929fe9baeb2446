"""Measures the samples of a trained run: they are sampled once, and every metric is computed from the same images.

The captions are those of the first scenes of the validation split. For `shapes-geneval` half as many captions of the
held-out split are sampled, too, whose looks (colour and shape) training never shows. Every metric is defined in its own
module.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from experiments.config.checks import require_judged_size
from experiments.config.schema import RunConfig
from experiments.data.captions import assertion_of, describe
from experiments.data.scenes import Scene, Split, draw_scenes
from experiments.evaluation.inference.routing_maps import (
    DROPPED,
    RATIO,
    TIMES,
    RoutingWatcher,
    measure_scenes,
    scene_row,
)
from experiments.evaluation.metrics.alignment import HELD_OUT_SCORE, SCORE, alignment_rows
from experiments.evaluation.metrics.frechet import DISTANCE, REFERENCE_FIRST, FrechetShapes, render_batch
from experiments.evaluation.metrics.judge import judge
from experiments.evaluation.sampling.batches import num_calls, sampled_batches
from experiments.evaluation.sampling.load import LoadedRun
from experiments.evaluation.sampling.settings import Conditions
from experiments.records.schema import EvalRow
from experiments.records.writer import append_evaluations, append_routing_maps, stored_rows

if TYPE_CHECKING:
    from experiments.evaluation.metrics.real_metrics import Backbones, RealMetrics

HELD_OUT_FIRST = 1 << 20
"""The number of the first image of the held-out split. It is far above the others, so that the noise differs."""
ROUTING = "routing"
REAL = ("fid", "clip-score")


@dataclass(frozen=True)
class CaptionSet:
    """Scenes whose captions are sampled, and the numbers of their images."""

    scenes: list[Scene]
    numbers: range

    @property
    def captions(self) -> list[str]:
        """The captions in the words of the data."""
        return [describe(scene) for scene in self.scenes]


def caption_set(config: RunConfig, split: Split, num_images: int) -> CaptionSet:
    """Returns the first scenes of a split."""
    first = HELD_OUT_FIRST if split == "held_out" else 0
    scenes = draw_scenes(config.data.seed, range(num_images), split, config.data.image_size)
    return CaptionSet(scenes, range(first, first + num_images))


def require_judged(config: RunConfig, metrics: Sequence[str]) -> None:
    """Raises `ConfigError` where `metrics` need the judge and the images are too small for it."""
    if SCORE in metrics:
        way_out = f"Measure without it: --metrics {DISTANCE}."
        require_judged_size(config.data.image_size, SCORE, way_out)


class ShapesScores:
    """Accumulates `shapes-geneval` and `frechet-shapes` batch by batch, from images [B, C, H, W] in [-1, 1]."""

    def __init__(self, config: RunConfig, metrics: Sequence[str], seen: CaptionSet, unseen: CaptionSet | None) -> None:
        """Raises `ConfigError` where the images are too small to be judged."""
        require_judged(config, metrics)
        self._seen, self._unseen = seen, unseen
        self._correct: dict[int, bool] = {}
        self._judges = SCORE in metrics
        self._frechet = FrechetShapes(config.data.seed, config.data.image_size) if DISTANCE in metrics else None

    def add(self, numbers: range, images_BCHW: Tensor) -> None:
        """Adds a batch of images; `numbers` are their numbers."""
        mine = self._unseen if self._unseen is not None and numbers.start >= HELD_OUT_FIRST else self._seen
        if self._judges:
            scenes = [mine.scenes[number - mine.numbers.start] for number in numbers]
            verdicts = judge(images_BCHW, [assertion_of(scene) for scene in scenes])
            self._correct |= {number: each.correct for number, each in zip(numbers, verdicts, strict=True)}
        if self._frechet is not None and mine is self._seen:
            self._frechet.add(images_BCHW)

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the rows of what was added, under the conditions of `base`."""
        found = [] if self._frechet is None else [self._frechet.row(base)]
        for metric, part in ((SCORE, self._seen), (HELD_OUT_SCORE, self._unseen)):
            if self._judges and part is not None:
                correct = [self._correct[number] for number in part.numbers]
                found += alignment_rows(metric, [scene.kind for scene in part.scenes], correct, base)
        return found


class RunScorer:
    """Finds which metrics are missing for one run under one set of conditions, and measures them."""

    def __init__(
        self,
        run: LoadedRun,
        metrics: Sequence[str],
        conditions: Conditions,
        backbones: Backbones | None = None,
        again: bool = False,
    ) -> None:
        """Reads what is recorded, which is measured, too, with `again`. `backbones` are for the metrics in `REAL`.

        Raises `ConfigError` where the images are too small to be judged, also where a value is recorded.
        """
        require_judged(run.config, metrics)
        self.run, self.conditions, self._backbones = run, conditions, backbones
        self.base = conditions.row(run.config, run.images_seen)
        possible = [metric for metric in metrics if metric != ROUTING or run.config.routing.name != "dense"]
        past = [] if again else _recorded(run)
        found = {metric: self._past_rows(metric, past) for metric in possible}
        self.past = [row for rows in found.values() for row in rows]
        self.recorded = [metric for metric, rows in found.items() if rows]
        self.missing = [metric for metric, rows in found.items() if not rows]

    def measure(self, on_share: Callable[[float], None] = lambda share: None) -> list[EvalRow]:
        """Returns every row of the metrics asked for. Missing ones are measured and recorded at the end."""
        if not self.missing:
            return self.past
        run, config = self.run, self.run.config
        seen = caption_set(config, "validation", self.conditions.num_images)
        unseen = caption_set(config, "held_out", max(1, len(seen.scenes) // 2)) if SCORE in self.missing else None
        parts = [seen] if unseen is None else [seen, unseen]
        on_call = _counted(self._num_calls(parts), on_share)
        shapes = ShapesScores(config, self.missing, seen, unseen)
        real = self._real_metrics(len(seen.scenes))
        kinds = [scene.kind for scene in seen.scenes]
        routing = RoutingWatcher(run, kinds, first_of_kinds(kinds)) if ROUTING in self.missing else None
        for part in parts:
            watcher = routing if part is seen else None
            captions = part.captions
            batches = sampled_batches(run.model, config, captions, self.conditions, part.numbers, watcher, on_call)
            for batch in batches:
                shapes.add(batch.numbers, batch.images_BCHW)
                if watcher is not None:
                    watcher.end_batch(batch.images_BCHW)
                if real is not None and part is seen:
                    real.add(batch.images_BCHW, captions[batch.numbers.start : batch.numbers.stop])
        rows = shapes.rows(self.base)
        rows += _real_rows(real, self.base) if real is not None else []
        if routing is not None:
            rows += self._record_routing(routing, seen, on_call)
        append_evaluations(run.run_dir, rows)
        return [*self.past, *rows]

    def _num_calls(self, parts: Sequence[CaptionSet]) -> int:
        calls = sum(num_calls(len(part.scenes), self.conditions) for part in parts)
        of_scenes = -(-self.conditions.num_images // self.conditions.batch_images) * len(TIMES)
        return calls + (of_scenes if ROUTING in self.missing else 0)

    def _record_routing(self, watcher: RoutingWatcher, seen: CaptionSet, on_call: Callable[[], None]) -> list[EvalRow]:
        """Writes the maps to their own files, and returns the rows of values."""
        along_path = watcher.measured(self.base)
        on_scenes = measure_scenes(self.run, self.conditions, on_call)
        append_routing_maps(self.run.run_dir, [*on_scenes.maps, *along_path.maps])
        watcher.compute_map(dict(enumerate(seen.captions))).save(self.run.run_dir.compute_map)
        return [*on_scenes.evals, *along_path.evals]

    def _real_metrics(self, num_images: int) -> RealMetrics | None:
        """Returns the accumulator of FID and CLIP score with as many renders added as there will be images, or None."""
        wanted = [metric for metric in REAL if metric in self.missing]
        if not wanted:
            return None
        assert self._backbones is not None
        from experiments.evaluation.metrics.real_metrics import RealMetrics

        real = RealMetrics(self._backbones, wanted, next(self.run.model.parameters()).device)
        data = self.run.config.data
        for first in range(0, num_images, self.conditions.batch_images):
            numbers = range(first, min(first + self.conditions.batch_images, num_images))
            moved = range(REFERENCE_FIRST + numbers.start, REFERENCE_FIRST + numbers.stop)
            real.add_real(render_batch(data.seed, data.image_size, moved))
        return real

    def _past_rows(self, metric: str, past: Sequence[EvalRow]) -> list[EvalRow]:
        """Returns the newest rows of a metric under these conditions; none unless all of them are there."""
        if metric == ROUTING:
            found = [_newest(past, self.base, DROPPED), _newest(past, scene_row(self.run, self.conditions), RATIO)]
            if not all(found):
                return []
            return [row for rows in found for row in rows] + _newest(past, self.base, "branch_divergence")
        rows = _newest(past, self.base, metric)
        if metric == SCORE and rows:
            half = self.base.model_copy(update={"num_samples": max(1, self.conditions.num_images // 2)})
            held_out = _newest(past, half, HELD_OUT_SCORE)
            return [*rows, *held_out] if held_out else []
        return rows


def first_of_kinds(kinds: Sequence[str]) -> list[int]:
    """Returns the index of the first of each kind, in order."""
    return [place for place, kind in enumerate(kinds) if kind not in kinds[:place]]


def _newest(past: Sequence[EvalRow], like: EvalRow, metric: str) -> list[EvalRow]:
    """Returns the last row of `metric` under the conditions of `like`, and its parts (`metric/...`) after it."""
    places = [place for place, row in enumerate(past) if row.metric == metric and _same_conditions(row, like)]
    if not places:
        return []
    rows = [past[places[-1]]]
    for row in past[places[-1] + 1 :]:
        if not row.metric.startswith(f"{metric}/"):
            break
        rows.append(row)
    return rows


def _same_conditions(row: EvalRow, like: EvalRow) -> bool:
    """Return whether `row` was measured under the conditions of `like`.

    `row` may record more settings than `like`, such as a feature network.
    """
    same = (row.images_seen, row.weights, row.seed, row.num_samples)
    return same == (like.images_seen, like.weights, like.seed, like.num_samples) and all(
        name in row.settings and row.settings[name] == value for name, value in like.settings.items()
    )


def _recorded(run: LoadedRun) -> list[EvalRow]:
    return list(stored_rows(run.run_dir.evals, EvalRow))


def _real_rows(real: RealMetrics, base: EvalRow) -> list[EvalRow]:
    settings = real.settings()
    return [
        base.model_copy(
            update={
                "metric": metric, "value": found.value, "interval_low": found.low, "interval_high": found.high,
                "num_samples": found.num_samples, "settings": base.settings | settings[metric],
            }
        )
        for metric, found in real.values().items()
    ]  # fmt: skip


def _counted(total: int, on_share: Callable[[float], None]) -> Callable[[], None]:
    """Returns a function to call `total` times; each call passes the finished share to `on_share`."""
    calls = 0

    def on_call() -> None:
        nonlocal calls
        calls += 1
        on_share(calls / total)

    return on_call
