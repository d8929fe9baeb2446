"""`mean-saturation`: how colourful the sampled images are; an example of a metric.

The saturation of a pixel is (max - min) / max over its three channels, as in HSV: 0 for grey and 1 for a pure colour.
The value is the mean over pixels and images, with a 95% interval over images.

Legend: B images, C channels (3), H, W height and width.

    ecdit evaluate out/demo --metrics mean-saturation --plugin mean_saturation.py
"""

from __future__ import annotations

from statistics import fmean

from experiments.config.metric_row import MetricRow, RecordedValue
from experiments.evaluation.metrics.intervals import normal_interval
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.records.record_types import EvalRow

NAME = "mean-saturation"


class MeanSaturation(SampledMetric):
    """Accumulates the mean saturation of each image."""

    def __init__(self, task: MetricTask) -> None:
        self._saturations: list[float] = []

    def add(self, batch: LabelledBatch) -> None:
        """Adds images [B, C, H, W] in [-1, 1]."""
        colours_BCHW = (batch.images_BCHW.clamp(-1, 1) + 1) / 2
        highest_BHW, lowest_BHW = colours_BCHW.amax(dim=1), colours_BCHW.amin(dim=1)
        # A black pixel has no colour; the small divisor makes its saturation 0 instead of 0 / 0.
        saturation_BHW = (highest_BHW - lowest_BHW) / highest_BHW.clamp(min=1e-6)
        self._saturations += saturation_BHW.mean(dim=(1, 2)).tolist()

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the mean with its interval."""
        low, high = normal_interval(self._saturations, 0.0, 1.0)
        value = {"metric": NAME, "value": fmean(self._saturations), "interval_low": low, "interval_high": high}
        return [base.model_copy(update=value | {"num_samples": len(self._saturations)})]


METRIC = MetricRow(
    NAME,
    values=(
        RecordedValue(
            NAME, axis="Mean saturation (%)", factor=100.0, title="saturation", format=".1%", interval_format=".0%",
            figures=("image-quality", "quality-over-training"),
        ),
    ),
    implementation=MeanSaturation,
    while_training=True,
)  # fmt: skip
METRICS = [METRIC]
