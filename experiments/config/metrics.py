"""Lists every metric of `ecdit evaluate` in one table: what it needs, which values it records, and how they are shown.

A metric is one row of `METRICS` and one file, whose class the row names. Tables, figures and settings read the row; a
plugin adds its row to the same dict. The module imports neither torch nor pydantic, because planning, plotting and
`ecdit --help` read it. `experiments/evaluation/metrics/sampled_metric.py` says how a metric is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.errors import ConfigError

CaptionSplit = Literal["validation", "held_out"]

MIN_JUDGED_SIZE = 16
"""The smallest `data.image_size` at which the judge of `shapes-geneval` can be trusted with true renders."""

UNRELIABLE_BELOW = (
    f"below {MIN_JUDGED_SIZE} pixels the judge of shapes-geneval denies true renders (it says yes to 67.8% of them at "
    "8 pixels, 92.6% at 12, 98.9% at 14, and 99.95% at 16)"
)
"""The rates were measured on the first 2,000 scenes of the validation split; a test measures them again."""

VELOCITY_ERROR = "velocity_error"
"""The metric of training that all objectives share: the mean squared error of the straight path's velocity, from image
to noise, that the prediction implies. For rectified flow that predicts the velocity it is `val_loss`."""

FRECHET_FEATURES = 64
"""The number of features of the network for `frechet-shapes`."""


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


KINDS_OF_SCENES = {
    "single_object": "single", "two_object": "two", "counting": "count", "colors": "colour", "position": "position",
    "color_attribution": "attribute",
}  # fmt: skip
PERCENT: dict[str, Any] = {"format": ".1%", "interval_format": ".0%"}
SHARE: dict[str, Any] = {"format": ".3f", "interval_format": ".3f", "of_dense": False, "figures": ()}

METRICS: dict[str, MetricRow] = {
    row.name: row
    for row in (
        MetricRow(
            "shapes-geneval",
            (
                RecordedValue(
                    "shapes-geneval", "shapes-geneval (%)", 100.0, **PERCENT,
                    figures=("alignment", "quality-over-training", "quality-time", "guidance", "ema-width"),
                    note="shapes-geneval: share of images that show exactly what the caption says, mean over the "
                    "kinds.",
                    parts=KINDS_OF_SCENES,
                ),
                RecordedValue(
                    "shapes-geneval-held-out", "shapes-geneval (%)\non held-out looks", 100.0, **PERCENT,
                    figures=("alignment",), title="held-out",
                ),
            ),
            "experiments.evaluation.metrics.alignment:ShapesGeneval",
            captions=("validation", "held_out"), while_training=True, compares_captions=True,
            min_image_size=MIN_JUDGED_SIZE, min_image_size_reason=UNRELIABLE_BELOW,
        ),
        MetricRow(
            "frechet-shapes",
            (
                RecordedValue(
                    "frechet-shapes", higher_is_better=False, format=".3g", is_logarithmic_where_wide=True,
                    figures=("image-quality", "quality-over-training", "quality-time", "guidance", "ema-width"),
                    few_images=FewImages(
                        FRECHET_FEATURES, "features", "the covariance is singular and the distance far too large"
                    ),
                ),
            ),
            "experiments.evaluation.metrics.frechet:FrechetShapes",
            while_training=True, is_recorded_first=True,
            min_images=2, min_images_reason="compares a covariance, which one image does not have",
        ),
        MetricRow(
            "intra-frechet-shapes",
            (
                RecordedValue(
                    "intra-frechet-shapes", higher_is_better=False, format=".3g", parts=KINDS_OF_SCENES,
                    note="intra-frechet-shapes: distance within a kind of scenes, mean over the kinds.",
                ),
            ),
            "experiments.evaluation.metrics.intra_frechet:IntraFrechetShapes", min_images=6 * (FRECHET_FEATURES + 1),
        ),
        MetricRow(
            "fid",
            (RecordedValue("fid", "FID\n(lower is better)", higher_is_better=False, format=".2f"),),
            "experiments.evaluation.metrics.fid:Fid",
            needs_files=("--inception-weights",), min_images=2,
        ),
        MetricRow(
            "clip-score",
            (RecordedValue("clip-score", "CLIP score\n(higher is better)", format=".2f"),),
            "experiments.evaluation.metrics.clip_score:ClipScore",
            needs_files=("--clip-model",), compares_captions=True,
        ),
        MetricRow(
            "routing",
            (
                RecordedValue(
                    "object_compute_ratio", **SHARE, title="object/backgr.",
                    note="object/backgr.: experts per token on objects over those on background, in true scenes.",
                ),
                RecordedValue(
                    "branch_divergence", "Divergence of the\nbranches (0 to 1)", higher_is_better=False,
                    **SHARE | {"figures": ("guidance",)}, is_optional=True, title="divergence",
                    note="divergence: share of assignments that only one branch of guidance has.",
                ),
                RecordedValue(
                    "sampled_dropped_share", higher_is_better=False, of_dense=False, figures=(), title="dropped",
                    format=".1%", note="dropped: tokens that no expert processed while sampling.",
                ),
            ),
            "experiments.evaluation.metrics.routed_tokens:RoutedTokens",
            needs_routed_layers=True,
        ),
        MetricRow(
            "validation-loss",
            (
                RecordedValue(
                    "validation-loss", "Validation loss\n(velocity MSE)", higher_is_better=False,
                    figures=("ema-width",), title="validation loss", format=".4f",
                ),
                RecordedValue(
                    "validation-velocity-error", "Velocity error\n(mean square)", higher_is_better=False,
                    figures=(), title="velocity error", format=".4f", is_optional=True,
                    note="velocity error: mean squared error of the velocity that the prediction implies, a measure "
                    "that different objectives share.",
                ),
            ),
            "experiments.evaluation.metrics.validation_loss:ValidationLoss", captions=(),
        ),
        MetricRow(
            "inference-time",
            (
                RecordedValue(
                    "inference_seconds_per_image", "Measured time per image (s)", higher_is_better=False,
                    figures=(), title="s an image", format=".4f",
                ),
                RecordedValue(
                    "inference_peak_memory_gib", higher_is_better=False, figures=(), title="peak GiB", format=".3f"
                ),
            ),
            implementation=None,
        ),
    )
}  # fmt: skip

IMPORTED = tuple(RecordedValue(name, factor=100.0, **PERCENT, figures=()) for name in ("geneval", "dsg"))
"""The values of `ecdit evaluate --import-geneval` and `--import-dsg`, which other programs measured."""

DEFAULT_METRICS = ("shapes-geneval", "frechet-shapes")
"""The metrics that `ecdit evaluate` measures where none is named."""


def sampled_metrics() -> list[MetricRow]:
    """Returns the metrics of sampled images."""
    return [row for row in METRICS.values() if row.implementation is not None]


def training_metrics(with_captions: bool = True) -> list[MetricRow]:
    """Returns the metrics that training measures, too; without captions those that compare images with none."""
    rows = [row for row in METRICS.values() if row.while_training]
    return [row for row in rows if with_captions or not row.compares_captions]


def in_recorded_order(names: Iterable[str]) -> list[MetricRow]:
    """Returns the rows of metrics in the order in which their values are written, whatever the order of `names`."""
    wanted = set(names)
    return sorted((METRICS[name] for name in METRICS if name in wanted), key=lambda row: not row.is_recorded_first)


def values_in(figure: str, rows: Iterable[MetricRow] | None = None) -> list[RecordedValue]:
    """Returns the values of `rows` that `figure` draws; without `rows`, of all metrics."""
    among = METRICS.values() if rows is None else rows
    return [value for row in among for value in row.values if figure in value.figures]


def find_value(name: str) -> RecordedValue | None:
    """Returns the description of the recorded value called `name`, or None where no metric has it."""
    values = [*(value for row in METRICS.values() for value in row.values), *IMPORTED]
    return next((value for value in values if value.name == name), None)
