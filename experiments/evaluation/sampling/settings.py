"""The conditions under which images are made for a measurement, and how they are written into the records.

Two values of one metric may be compared when their settings, seed, number of images and weights are equal. The same
four decide whether a value is recorded already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.config.schema import RunConfig
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.records.record_types import EvalRow, Weights


@dataclass(frozen=True)
class Conditions:
    """Everything that a sampled value depends on apart from the values of the weights."""

    num_images: int
    batch_images: int
    seed: int
    weights: Weights
    precision: str
    sampler: SamplerSettings
    ema_width: float | None = None
    """The width of an average that was reconstructed; None for the average that training keeps to evaluate with."""

    @property
    def marks(self) -> dict[str, float]:
        """Returns the settings that every measurement with these weights records, also one that samples nothing."""
        return {} if self.ema_width is None else {"ema_width": self.ema_width}

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """Returns the settings for the records, with the batch only where an image's routing depends on it."""
        guidance = self.sampler.guidance
        shown: dict[str, Any] = {
            "guidance": guidance.scale,
            "guidance_start": guidance.start,
            "guidance_stop": guidance.stop,
            "steps": self.sampler.num_steps,
            "sampler": self.sampler.sampler,
            "shift": self.sampler.shift,
            "precision": self.precision,
        }
        if guidance.channels is not None:  # absent where all are guided, as in the rows of earlier versions
            shown["guidance_channels"] = guidance.channels
        return shown | ({"batch_images": self.batch_images} if depends_on_batch(config) else {}) | self.marks

    def row(self, config: RunConfig, images_seen: int) -> EvalRow:
        """Returns a row of these conditions whose metric and value are still to be set."""
        return EvalRow(
            images_seen=images_seen, metric="", value=0.0, num_samples=self.num_images,
            seed=self.seed, weights=self.weights, settings=self.settings(config),
        )  # fmt: skip


def depends_on_batch(config: RunConfig) -> bool:
    """Returns whether the other images of a batch change an image, because tokens compete for slots across images."""
    return config.routing.name != "dense" and config.routing.group_images not in (None, 1)


def training_conditions(config: RunConfig, precision: str) -> Conditions:
    """Returns the conditions of samples measured during training, which `ecdit evaluate` has as defaults."""
    sampler = SamplerSettings.of(config)
    return Conditions(config.eval.metric_images, config.eval.batch_images, config.data.seed, "ema", precision, sampler)
