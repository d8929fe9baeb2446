"""Running means between two rows of `steps.jsonl`, and the images and seconds that a run has spent.

They are saved in checkpoints, so that a resumed run writes the same rows as an uninterrupted one, except for seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from experiments.records.record_types import StepRow


@dataclass
class RunningMeans:
    """Sums over the steps since the last row, and the images and seconds of the whole run."""

    images_seen: int = 0
    seconds: float = 0.0
    row_steps: int = 0
    row_images: int = 0
    row_seconds: float = 0.0
    loss_sum: float = 0.0
    auxiliary_loss_sum: float = 0.0
    grad_norm_sum: float = 0.0
    executed_flops: float | None = None
    """Training FLOPs of the whole run as executed; None where they are those that are planned."""

    def add(
        self, images: int, seconds: float, loss: float, auxiliary_loss: float, grad_norm: float,
        executed_flops: float | None = None,
    ) -> None:  # fmt: skip
        """Adds the values of one optimizer step; `executed_flops` are those of the step."""
        if executed_flops is not None:
            self.executed_flops = (self.executed_flops or 0.0) + executed_flops
        self.images_seen += images
        self.seconds += seconds
        self.row_steps += 1
        self.row_images += images
        self.row_seconds += seconds
        self.loss_sum += loss
        self.auxiliary_loss_sum += auxiliary_loss
        self.grad_norm_sum += grad_norm

    def take_row(self, learning_rate: float, train_flops_per_image: int, has_auxiliary_loss: bool) -> StepRow:
        """Returns the row over all steps since the last row, and resets the sums."""
        steps = self.row_steps
        row = StepRow(
            images_seen=self.images_seen,
            flops=float(self.images_seen) * train_flops_per_image,
            seconds=self.seconds,
            loss=self.loss_sum / steps,
            auxiliary_loss=self.auxiliary_loss_sum / steps if has_auxiliary_loss else None,
            learning_rate=learning_rate,
            grad_norm=self.grad_norm_sum / steps,
            images_per_second=self.row_images / max(self.row_seconds, 1e-9),
            executed_flops=self.executed_flops,
        )
        self.row_steps = self.row_images = 0
        self.row_seconds = self.loss_sum = self.auxiliary_loss_sum = self.grad_norm_sum = 0.0
        return row

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint; JSON keeps every bit of a float."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RunningMeans:
        """Restores the object from its `state`."""
        given = {name: state[name] for name in cls.__dataclass_fields__ if name != "executed_flops"}
        return cls(**given, executed_flops=state.get("executed_flops"))
