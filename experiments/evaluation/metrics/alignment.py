"""`shapes-geneval` is the share of generated images that show exactly what their caption says, by kind and overall.

The overall score is the mean over the kinds, as GenEval's score is the mean over its tasks (Ghosh et al., arXiv
2310.11513). It is not GenEval: captions and objects are different, and the judge knows this data (`judge.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.config.metric_row import CaptionSplit, MetricRow
from experiments.data.scenes.captions import assertion_of
from experiments.data.scenes.scene import KINDS, Kind
from experiments.evaluation.metrics.intervals import mean_interval, wilson
from experiments.evaluation.metrics.judge import judge
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.records.record_types import EvalRow

SCORE = "shapes-geneval"
HELD_OUT_SCORE = "shapes-geneval-held-out"
"""The score on captions that name looks which training never shows; only the kinds that name colours have them."""


class ShapesGeneval(SampledMetric):
    """Judges every image against its caption; images of held-out captions have a score of their own."""

    def __init__(self, task: MetricTask) -> None:
        self._verdicts: dict[CaptionSplit, list[tuple[Kind, bool]]] = {"validation": [], "held_out": []}

    @classmethod
    def recorded_under(cls, row: MetricRow, task: MetricTask) -> dict[str, EvalRow]:
        """Returns the conditions of both scores; half as many held-out captions are sampled."""
        half = task.base.model_copy(update={"num_samples": max(1, task.conditions.num_images // 2)})
        return {SCORE: task.base, HELD_OUT_SCORE: half}

    def add(self, batch: LabelledBatch) -> None:
        """Judges the images."""
        verdicts = judge(batch.images_BCHW, [assertion_of(scene) for scene in batch.scenes])
        kinds = [scene.kind for scene in batch.scenes]
        self._verdicts[batch.split] += [(kind, one.correct) for kind, one in zip(kinds, verdicts, strict=True)]

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the score and its kinds, and the same of the held-out captions."""
        found: list[EvalRow] = []
        scores: dict[str, CaptionSplit] = {SCORE: "validation", HELD_OUT_SCORE: "held_out"}
        for metric, split in scores.items():
            kinds, correct = zip(*self._verdicts[split], strict=True)
            found += alignment_rows(metric, kinds, correct, base)
        return found


def alignment_rows(metric: str, kinds: Sequence[Kind], correct: Sequence[bool], base: EvalRow) -> list[EvalRow]:
    """Returns the rows `metric` and `metric/<kind>`, with 95% intervals over images.

    `correct` are the verdicts on images, and `kinds` the kinds of their captions.
    """
    counts: dict[Kind, tuple[int, int]] = {}
    for kind in KINDS:
        mine = [good for good, of_kind in zip(correct, kinds, strict=True) if of_kind == kind]
        if mine:
            counts[kind] = (sum(mine), len(mine))
    overall = sum(right / total for right, total in counts.values()) / len(counts)
    rows = [_row(base, metric, overall, mean_interval(list(counts.values())), len(kinds))]
    for kind, (right, total) in counts.items():
        rows.append(_row(base, f"{metric}/{kind}", right / total, wilson(right, total), total))
    return rows


def _row(base: EvalRow, metric: str, value: float, interval: tuple[float, float], num_samples: int) -> EvalRow:
    update = {"metric": metric, "value": value, "interval_low": interval[0], "interval_high": interval[1]}
    return base.model_copy(update=update | {"num_samples": num_samples})
