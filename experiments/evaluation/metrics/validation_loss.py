"""Measures `validation-loss`: the loss that training records as `val_loss`, for any weights that a run can give.

The velocity error, which runs of different objectives share, is measured beside it.

It needs no samples. With `ecdit evaluate --ema` it shows which width of the average of the weights has the lowest loss.
"""

from __future__ import annotations

import math

from experiments.config.metric_row import MetricRow
from experiments.data.loader import validation_set
from experiments.errors import RunFailedError
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.sampling.settings import Conditions
from experiments.records.record_types import EvalRow
from experiments.training.validation import measure_batches

VALIDATION_LOSS, VELOCITY_ERROR = "validation-loss", "validation-velocity-error"


class ValidationLoss(SampledMetric):
    """Measures the model on the fixed validation set of its run, in batches of mixed t."""

    def __init__(self, task: MetricTask) -> None:
        self._task = task

    @classmethod
    def recorded_under(cls, row: MetricRow, task: MetricTask) -> dict[str, EvalRow]:
        """Returns the conditions of both values; no sampler is involved in them."""
        return {name: _base(task, name) for name in (VALIDATION_LOSS, VELOCITY_ERROR)}

    @classmethod
    def num_own_calls(cls, conditions: Conditions) -> int:
        """Counts the validation set as one call."""
        return 1

    def add(self, batch: LabelledBatch) -> None:
        """Ignores sampled images."""

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the means over the validation set. Raises `RunFailedError` where it is not finite."""
        run, config = self._task.run, self._task.config
        assert run is not None
        measured = measure_batches(run.model, validation_set(config), next(run.model.parameters()).device, config)
        self._task.on_call()
        losses, errors, _ = zip(*(of_image for _, of_batch in measured.losses for of_image in of_batch), strict=True)
        rows = []
        for name, values in ((VALIDATION_LOSS, losses), (VELOCITY_ERROR, errors)):
            mean = sum(values) / len(values)
            if not math.isfinite(mean):
                raise RunFailedError(
                    f"The validation loss of {run.run_dir.path} is not finite.", "Its weights diverged."
                )
            rows.append(_base(self._task, name).model_copy(update={"value": mean, "num_samples": len(values)}))
        return rows


def _base(task: MetricTask, name: str) -> EvalRow:
    """Returns the row called `name` without its value."""
    settings = {"precision": task.conditions.precision, **task.conditions.marks}
    return task.base.model_copy(
        update={
            "metric": name, "num_samples": task.config.eval.images, "seed": task.config.data.seed,
            "settings": settings,
        }
    )  # fmt: skip
