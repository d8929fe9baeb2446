"""Defines the row of a metric: the values that it records, the class that measures it, and what that class needs.

`experiments/config/metrics.py` lists the rows of all metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.errors import ConfigError

CaptionSplit = Literal["validation", "held_out"]
ImageKind = Literal["scenes", "pictures", "classes"]
"""The kind of images: drawn scenes, pictures of a prepared set of pixels, or images of any data that have classes."""
MEASURED_ON: Mapping[ImageKind, str] = {
    "scenes": "shapes",
    "pictures": "pixels",
    "classes": "data with classes",
}
"""The data that have images of a kind, in the words of `data.name`."""


@dataclass(frozen=True)
class FewImages:
    """Says that a value over at most `num_images` images is not to be trusted.

    `num_images` is the number of `things` that the metric has, such as features, and `consequence` says what happens.
    """

    num_images: int
    things: str
    consequence: str


@dataclass(frozen=True)
class RecordedValue:
    """Describes one value that a metric records, its column in tables and its axis in figures."""

    name: str
    """The `metric` of its rows in `evals.jsonl`."""
    axis: str = ""
    """The title of its axis. Empty stands for the name, and whether higher or lower is better."""
    factor: float = 1.0
    """Converts the recorded value to the units of the axis."""
    higher_is_better: bool = True
    of_dense: bool = True
    """Says whether runs of dense models can have the value."""
    is_optional: bool = False
    """Says whether a complete measurement may lack the value, for instance where guidance is off."""
    figures: tuple[str, ...] = ("image-quality",)
    """The figures that draw it: `alignment`, `image-quality`, `quality-over-training`, `quality-time`, `guidance`,
    `ema-width`."""
    is_logarithmic_where_wide: bool = False
    """Says whether its axis over training and over guidance is logarithmic where the values span a wide range."""
    title: str = ""
    """The title of its column in tables. Empty stands for the name."""
    format: str = ".4g"
    """The format of a recorded value in tables."""
    interval_format: str = ""
    """The format of the ends of the 95% interval behind the value. Empty shows no interval."""
    note: str = ""
    """A sentence below the table of `ecdit evaluate`."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """The titles of the parts, by the PART of the rows `NAME/PART`. The parts get a table of their own."""
    few_images: FewImages | None = None

    @property
    def label(self) -> str:
        """Returns the title of the axis."""
        return self.axis or f"{self.name}\n({'higher' if self.higher_is_better else 'lower'} is better)"

    def says_little(self, num_images: int) -> bool:
        """Returns whether a value over `num_images` images is not to be trusted."""
        return self.few_images is not None and num_images <= self.few_images.num_images

    def text(self, value: float, low: float | None = None, high: float | None = None) -> str:
        """Returns a recorded value as text, with its interval where the column shows one."""
        shown = format(value, self.format)
        if not self.interval_format or low is None or high is None:
            return shown
        return f"{shown} ({low:{self.interval_format}}-{high:{self.interval_format}})"


@dataclass(frozen=True)
class MetricRow:
    """Describes one metric: the values that it records, the class that measures it, and what that class needs.

    `implementation` is `MODULE:CLASS`, which is imported when the metric is measured, or the class itself. It is None
    for inference time, which the command measures for all runs in turns.
    """

    name: str
    values: tuple[RecordedValue, ...]
    implementation: str | type[Any] | None
    captions: tuple[CaptionSplit, ...] = ("validation",)
    """The captions whose images it is given: those of the validation split, or also half as many held-out ones; none
    for a metric that needs no images."""
    measured_on: tuple[ImageKind, ...] = ("scenes",)
    """The images that it can measure; others are refused. It does not matter for a metric that needs no images."""
    needs_routed_layers: bool = False
    """Says whether it watches the routed layers of the model, so that runs of dense models do not have it."""
    compares_captions: bool = False
    """Says whether it compares images with captions, so that runs conditioned on classes do not have it."""
    needs_files: tuple[str, ...] = ()
    """The options of `ecdit evaluate` with which a user names the files of the networks that it needs."""
    while_training: bool = False
    """Says whether training measures it, too, where `eval.metric_images` asks for images."""
    min_image_size: int = 0
    """The smallest `data.image_size` that it can measure; `min_image_size_reason` says why."""
    min_image_size_reason: str = ""
    min_images: int = 1
    """The smallest number of images that it can measure; `min_images_reason` says why."""
    min_images_reason: str = ""
    is_recorded_first: bool = False
    """Says whether its rows stand before those of the other metrics in `evals.jsonl`."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` where training could not provide what the metric needs."""
        if self.while_training and (self.needs_routed_layers or self.needs_files):
            raise ConfigError(
                f"metric {self.name!r} cannot be measured while training: it needs "
                f"{'routed layers' if self.needs_routed_layers else ' and '.join(self.needs_files)}.",
                "Set while_training=False in its row.",
            )

    def fits(self, kinds: frozenset[ImageKind]) -> bool:
        """Says whether it can measure images of one of these kinds."""
        return not self.captions or not kinds.isdisjoint(self.measured_on)

    def require_image_size(self, image_size: int, asked: str, way_out: str) -> None:
        """Raises `ConfigError` about what was `asked` where images of `image_size` are too small for the metric."""
        if image_size < self.min_image_size:
            reason = self.min_image_size_reason or f"{self.name} needs at least {self.min_image_size} pixels"
            raise ConfigError(f"{asked} does not fit data.image_size={image_size}: {reason}.", way_out)

    def require_num_images(self, num_images: int, asked: str, way_out: str) -> None:
        """Raises `ConfigError` about what was `asked` where `num_images` are too few for the metric."""
        if num_images < self.min_images:
            reason = self.min_images_reason or f"needs at least {self.min_images} images"
            raise ConfigError(f"{asked} is too few: {self.name} {reason}.", way_out)
