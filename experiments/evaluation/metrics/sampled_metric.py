"""The contract of a metric of sampled images: what it is given, what it answers, and how its class is found.

A metric is a subclass of `SampledMetric` in a file of its own, and the row of `experiments.config.metrics` that names
it. One object accumulates the images of one run at one guidance scale, batch by batch; `score.py` samples the images,
which all metrics share, and writes the rows.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from experiments.config.data_sets import data_set_of
from experiments.config.metric_row import CaptionSplit, MetricRow
from experiments.config.schema import RunConfig
from experiments.data.scenes.captions import describe
from experiments.data.scenes.classes import prompts_of
from experiments.data.scenes.scene import Scene, draw_scenes
from experiments.data.sources.image_source import named_classes, open_source, stored_labels
from experiments.data.sources.pixels import Pixels
from experiments.errors import ConfigError
from experiments.evaluation.metrics.caption_pool import MAX_ROWS
from experiments.evaluation.metrics.true_images import TrueImages, true_images_of
from experiments.evaluation.sampling.batches import Watcher
from experiments.evaluation.sampling.generate import Prompts
from experiments.evaluation.sampling.load_run import LoadedRun
from experiments.evaluation.sampling.settings import Conditions
from experiments.records.record_types import EvalRow

IMAGES_OF_CLASS = 4
"""The images of a class where not all classes can be sampled: what sets classes apart needs several of each."""
HELD_OUT_FIRST = 1 << 20
"""The number of the first image of the held-out split. It is far above the others, so that the noise differs."""


@dataclass(frozen=True)
class CaptionSet:
    """Scenes of one split whose captions are sampled, and the numbers of their images.

    Of a data set without scenes there are classes in their place, and of a prepared set of pixels the captions of its
    images: `rows` are the numbers of these images in the split, `texts` their captions, and `features` what the model
    reads.
    """

    split: CaptionSplit
    scenes: list[Scene]
    numbers: range
    labels: list[int] | None = None
    rows: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    features: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def captions(self) -> list[str]:
        """Returns the captions in the words of the data."""
        return self.texts or [describe(scene) for scene in self.scenes]

    def prompts(self, config: RunConfig) -> Prompts:
        """Returns what a run is asked for to show these scenes: captions, classes, or stored features of captions."""
        if self.features is not None:
            return self.features
        return prompts_of(config.data, self.scenes) if self.labels is None else self.labels

    def kinds(self, config: RunConfig) -> list[str]:
        """Returns the kind of each scene, or the name of each class."""
        if self.labels is None:
            return [scene.kind for scene in self.scenes]
        return named_classes(config.data, self.labels)


def caption_set(config: RunConfig, split: CaptionSplit, num_images: int) -> CaptionSet:
    """Returns the first scenes of a split, or captions of a prepared set, or the classes of validation images.

    A data set that stores no labels answers classes that spread over all.
    """
    first = HELD_OUT_FIRST if split == "held_out" else 0
    if data_set_of(config).has_pictures:
        return _stored_captions(config, split, num_images, first)
    if not data_set_of(config).has_scenes:
        labels = stored_labels(config.data, num_images) or _spread_classes(config.data.num_classes or 0, num_images)
        return CaptionSet(split, [], range(first, first + num_images), labels)
    scenes = draw_scenes(config.data.seed, range(num_images), split, config.data.image_size)
    return CaptionSet(split, scenes, range(first, first + num_images))


def _stored_captions(config: RunConfig, split: CaptionSplit, num_images: int, first: int) -> CaptionSet:
    """Returns the captions of the first images of a split, anew from the first where there are fewer.

    There are none where the set has no such split.
    """
    source = cast(Pixels, open_source(config.data))
    num_rows = min(MAX_ROWS, source.num_images(split))
    rows = [number % num_rows for number in range(num_images)] if num_rows else []
    numbers = range(first, first + len(rows))
    if not rows:
        return CaptionSet(split, [], numbers)
    labels = None if config.data.num_classes is None else source.labels(split, rows)
    features = None if labels is not None else source.text_features(split, rows)
    return CaptionSet(split, [], numbers, labels, rows, source.captions(split, rows), features)


def _spread_classes(num_classes: int, num_images: int) -> list[int]:
    """Returns classes in turn: all, or as many as have `IMAGES_OF_CLASS` images each, spread over all."""
    num_asked = min(num_classes, max(1, num_images // IMAGES_OF_CLASS))
    return [number % num_asked * num_classes // num_asked for number in range(num_images)]


@dataclass(frozen=True)
class UserFiles:
    """Files of networks that the user named with options of `ecdit evaluate`; None where an option was left out."""

    inception_weights: Path | None = None
    clip_model: Path | None = None


@dataclass(frozen=True)
class MetricTask:
    """Says what metrics are measured on: one run under one set of conditions.

    `base` is a row with these conditions, whose metric and value are still to be set. `resources` holds what `load`
    answered for each metric. `run` is None while a run trains. A metric that calls the model itself calls `on_call`
    after each of its `num_own_calls`.
    """

    config: RunConfig
    conditions: Conditions
    base: EvalRow
    resources: Mapping[str, Any] = field(default_factory=dict)
    run: LoadedRun | None = None
    on_call: Callable[[], None] = lambda: None

    def captions(self, split: CaptionSplit) -> CaptionSet:
        """Returns the captions of a split that are sampled."""
        return self._seen if split == "validation" else self._unseen

    @cached_property
    def true_images(self) -> TrueImages:
        """Returns the true images of the run's data, and the network in whose features they are compared."""
        return true_images_of(self.config.data)

    @cached_property
    def _seen(self) -> CaptionSet:
        return caption_set(self.config, "validation", self.conditions.num_images)

    @cached_property
    def _unseen(self) -> CaptionSet:
        return caption_set(self.config, "held_out", max(1, self.conditions.num_images // 2))


@dataclass(frozen=True)
class LabelledBatch:
    """Sampled images [B, C, H, W] on the CPU in [-1, 1], float32, with the split, number and scene of each.

    Of a prepared set there is no scene, but the number of the image in the split whose caption was asked for (`rows`),
    and that caption (`texts`).
    """

    split: CaptionSplit
    numbers: range
    images_BCHW: Tensor
    scenes: list[Scene]
    rows: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def captions(self) -> list[str]:
        """Returns the captions that the images were sampled from."""
        return self.texts or [describe(scene) for scene in self.scenes]


class SampledMetric(ABC):
    """Accumulates the images of one run under one set of conditions, and answers the rows of their values."""

    watcher: Watcher | None = None
    """Sees every call of the model while the images of the validation captions are sampled."""
    not_compared: ClassVar[frozenset[str]] = frozenset()
    """The settings of its rows that do not decide whether a value is recorded already: results, and names of files of
    which a checksum is recorded too. All others must be equal."""

    @classmethod
    def load(cls, files: UserFiles) -> Any:
        """Loads what all runs share, such as a network; called once, before the first run is sampled.

        A network of the user comes in an object whose `settings` say which it is, such as by its checksum.
        """
        return None

    @classmethod
    def own_settings(cls, row: MetricRow, task: MetricTask) -> dict[str, Any]:
        """Returns the settings beside those of sampling on which its values depend, such as the checksum of a network.

        They are those of what `load` returned, where that has `settings`. The `base` of `rows` holds them, and a value
        that was recorded under others is measured anew.
        """
        return dict(getattr(task.resources.get(row.name), "settings", {}))

    @classmethod
    def recorded_under(cls, row: MetricRow, task: MetricTask) -> dict[str, EvalRow]:
        """Returns, for each value, a row with the conditions under which it is recorded, its own settings included."""
        like = with_settings(task.base, cls.own_settings(row, task))
        return {value.name: like for value in row.values}

    @classmethod
    def num_own_calls(cls, conditions: Conditions) -> int:
        """Returns how often the metric calls the model itself."""
        return 0

    @abstractmethod
    def __init__(self, task: MetricTask) -> None:
        """Begins with no images."""

    @abstractmethod
    def add(self, batch: LabelledBatch) -> None:
        """Adds a batch of one of the splits that the metric's row asks for."""

    @abstractmethod
    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the rows of what was added, under the conditions of `base`; each part stands after its value."""


def with_settings(base: EvalRow, settings: Mapping[str, Any]) -> EvalRow:
    """Returns `base` with `settings` beside its own."""
    return base.model_copy(update={"settings": {**base.settings, **settings}})


def implementation_of(row: MetricRow) -> type[SampledMetric]:
    """Returns the class that measures a metric. Raises `ConfigError` where it cannot be used."""
    found = row.implementation
    if isinstance(found, str):
        with suppress(AttributeError, ValueError):  # a name that does not resolve stays a string, and is refused below
            found = pkgutil.resolve_name(found)
    if not (isinstance(found, type) and issubclass(found, SampledMetric)):
        raise ConfigError(
            f"the implementation of metric {row.name!r} is {row.implementation!r}, which is no SampledMetric.",
            "Derive it from experiments.evaluation.metrics.sampled_metric.SampledMetric.",
        )
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise ConfigError(
            f"{found.__name__}, which measures {row.name!r}, lacks {missing[0]}.", "See docs/how-to/add-a-metric.md."
        )
    return found
