"""Measures `validation-loss`: the loss that training records as `val_loss`, for any weights that a run can give.

It needs no samples. With `ecdit evaluate --ema` it shows which width of the average of the weights has the lowest loss.
"""

from __future__ import annotations

import math

from experiments.config.metrics import MetricRow
from experiments.data.loader import validation_set
from experiments.errors import RunFailedError
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric
from experiments.evaluation.sampling.settings import Conditions
from experiments.records.record_types import EvalRow
from experiments.training.validation import measure_batches

VALIDATION_LOSS = "validation-loss"


class ValidationLoss(SampledMetric):
    """Measures the model on the fixed validation set of its run, in batches of mixed t."""

    def __init__(self, task: MetricTask) -> None:
        self._task = task

    @classmethod
    def recorded_under(cls, row: MetricRow, task: MetricTask) -> dict[str, EvalRow]:
        """Returns the conditions of the loss; no sampler is involved in it."""
        return {VALIDATION_LOSS: _base(task)}

    @classmethod
    def num_own_calls(cls, conditions: Conditions) -> int:
        """Counts the validation set as one call."""
        return 1

    def add(self, batch: LabelledBatch) -> None:
        """Ignores sampled images."""

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the mean loss over the validation set. Raises `RunFailedError` where it is not finite."""
        run, config = self._task.run, self._task.config
        assert run is not None
        measured = measure_batches(run.model, validation_set(config), next(run.model.parameters()).device, config)
        self._task.on_call()
        losses = [loss for _, of_batch, _ in measured.losses for loss in of_batch]
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise RunFailedError(f"The validation loss of {run.run_dir.path} is not finite.", "Its weights diverged.")
        return [_base(self._task).model_copy(update={"value": mean, "num_samples": len(losses)})]


def _base(task: MetricTask) -> EvalRow:
    """Returns the row of the loss without its value."""
    settings = {"precision": task.conditions.precision, **task.conditions.marks}
    return task.base.model_copy(
        update={
            "metric": VALIDATION_LOSS, "num_samples": task.config.eval.images, "seed": task.config.data.seed,
            "settings": settings,
        }
    )  # fmt: skip
