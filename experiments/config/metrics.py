"""Lists every metric of `ecdit evaluate` in one table: what it needs, which values it records, and how they are shown.

A metric is one row of `METRICS` and one file, whose class the row names. Tables, figures and settings read the row; a
plugin adds its row to the same dict. The module imports neither torch nor pydantic, because planning, plotting and
`ecdit --help` read it. `experiments/evaluation/metrics/sampled_metric.py` says how a metric is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.config.metric_row import FewImages, ImageKind, MetricRow, RecordedValue

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
            "precision-recall-shapes",
            (
                RecordedValue(
                    "precision-shapes", "Precision (%)", 100.0, **PERCENT, title="precision",
                    note="precision: share of samples that lie among true images; recall: share of true images "
                    "that lie among samples.",
                ),
                RecordedValue("recall-shapes", "Recall (%)", 100.0, **PERCENT, title="recall"),
            ),
            "experiments.evaluation.metrics.neighbours:PrecisionRecall",
            min_images=4, min_images_reason="looks at the third nearest neighbour of each image",
        ),
        MetricRow(
            "memorisation-shapes",
            (
                RecordedValue(
                    "nearest-training-distance", interval_format=".3g", format=".3g", figures=(),
                    title="distance to training",
                    note="distance to training (memorisation-shapes): mean distance of samples to the nearest training "
                    "image, in features; beside it that of held-out images, which a model that copies falls below.",
                ),
                RecordedValue(
                    "nearest-training-distance-held-out", interval_format=".3g", format=".3g", figures=(),
                    title="held-out distance",
                ),
                RecordedValue(
                    "copied-share", **PERCENT, higher_is_better=False, figures=(), title="copied",
                    note="copied: share of samples nearer to a training image than 99% of held-out images are. Other "
                    "data that the first weights of a run were trained on are not searched.",
                ),
            ),
            "experiments.evaluation.metrics.neighbours:Memorisation",
        ),
        MetricRow(
            "frechet-pictures",
            (
                RecordedValue(
                    "frechet-pictures", higher_is_better=False, format=".3g", is_logarithmic_where_wide=True,
                    figures=("image-quality", "quality-over-training", "quality-time", "guidance", "ema-width"),
                    few_images=FewImages(
                        FRECHET_FEATURES, "features", "the covariance is singular and the distance far too large"
                    ),
                    note="frechet-pictures: Frechet distance to the validation split, in features of the network that "
                    "`ecdit data features` trained on the set.",
                ),
            ),
            "experiments.evaluation.metrics.frechet:FrechetPictures", measured_on=("pictures",), while_training=True,
            min_images=2, min_images_reason="compares a covariance, which one image does not have",
        ),
        MetricRow(
            "precision-recall-pictures",
            (
                RecordedValue(
                    "precision-pictures", "Precision (%)", 100.0, **PERCENT, title="precision",
                    note="precision and recall: share of samples among training images, and of these among samples; "
                    "beside it the precision of validation images.",
                ),
                RecordedValue("precision-pictures-true", **PERCENT, figures=(), title="of validation images"),
                RecordedValue("recall-pictures", "Recall (%)", 100.0, **PERCENT, title="recall"),
            ),
            "experiments.evaluation.metrics.neighbours:PrecisionRecallOfPictures", measured_on=("pictures",),
            min_images=4, min_images_reason="looks at the third nearest neighbour of each image",
        ),
        MetricRow(
            "memorisation-pictures",
            (
                RecordedValue(
                    "nearest-training-distance-pictures", interval_format=".3g", format=".3g", figures=(),
                    title="distance to training",
                    note="distance to training (memorisation-pictures): mean distance of samples to the nearest "
                    "training image, in features; beside it that of validation images.",
                ),
                RecordedValue(
                    "nearest-training-distance-validation-pictures", interval_format=".3g", format=".3g", figures=(),
                    title="validation distance",
                ),
                RecordedValue(
                    "copied-share-pictures", **PERCENT, higher_is_better=False, figures=(), title="copied",
                    note="copied: share of samples nearer to a training image than 99% of validation images are. Other "
                    "data that the first weights of a run were trained on are not searched.",
                ),
            ),
            "experiments.evaluation.metrics.neighbours:MemorisationOfPictures", measured_on=("pictures",),
        ),
        MetricRow(
            "caption-retrieval",
            (
                RecordedValue(
                    "caption-retrieval", "Own caption nearest\namong 100 (%)", 100.0, **PERCENT, title="retrieval",
                    figures=("alignment", "quality-over-training", "quality-time", "guidance", "ema-width"),
                    note="retrieval: share of samples whose own caption is the nearest of 100 (or of all, where a set "
                    "has fewer), by the network of the set; beside it the same share of the true images of these "
                    "captions.",
                ),
                RecordedValue("caption-retrieval-true", **PERCENT, figures=(), title="of true images"),
                RecordedValue(
                    "caption-retrieval-held-out", "Own caption nearest among 100\non held-out combinations (%)", 100.0,
                    **PERCENT, figures=("alignment",), is_optional=True, title="held-out retrieval",
                ),
                RecordedValue(
                    "caption-retrieval-held-out-true", **PERCENT, figures=(), is_optional=True,
                    title="held-out, true images",
                ),
            ),
            "experiments.evaluation.metrics.retrieval:CaptionRetrieval", measured_on=("pictures",),
            captions=("validation", "held_out"), while_training=True,
        ),
        MetricRow(
            "fid",
            (RecordedValue("fid", "FID\n(lower is better)", higher_is_better=False, format=".2f"),),
            "experiments.evaluation.metrics.fid:Fid",
            needs_files=("--inception-weights",), min_images=2, measured_on=("scenes", "pictures"),
        ),
        MetricRow(
            "clip-score",
            (RecordedValue("clip-score", "CLIP score\n(higher is better)", format=".2f"),),
            "experiments.evaluation.metrics.clip_score:ClipScore",
            needs_files=("--clip-model",), compares_captions=True, measured_on=("scenes", "pictures"),
        ),
        MetricRow(
            "routing",
            (
                RecordedValue(
                    "object_compute_ratio", **SHARE, is_optional=True, title="object/backgr.",
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
            needs_routed_layers=True, measured_on=("scenes", "classes"),
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
PICTURE_METRICS = ("frechet-pictures", "caption-retrieval")
"""Those that it measures of a run on a prepared set of pixels."""


def default_metrics(kinds: frozenset[ImageKind]) -> tuple[str, ...]:
    """Returns the metrics that are measured of images of these kinds where none is named."""
    return PICTURE_METRICS if "pictures" in kinds else DEFAULT_METRICS


def sampled_metrics() -> list[MetricRow]:
    """Returns the metrics of sampled images."""
    return [row for row in METRICS.values() if row.implementation is not None]


def training_metrics(kinds: frozenset[ImageKind], with_captions: bool = True) -> list[MetricRow]:
    """Returns the metrics that training measures of such images; without captions those that compare them with none."""
    rows = [row for row in METRICS.values() if row.while_training and row.fits(kinds)]
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
