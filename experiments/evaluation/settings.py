"""How images are made for a measurement, and how that is written into the records.

Two values of one metric may be compared when their settings, seed, number of images and weights are equal; the same
four decide whether a value is recorded already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from experiments.config.schema import RunConfig
from experiments.evaluation.generate import SamplerSettings
from experiments.flow.samplers import Guidance
from experiments.records.schema import EvalRow, Weights


@dataclass(frozen=True)
class Conditions:
    """What a sampled value depends on beside the weights themselves."""

    num_images: int
    batch_images: int
    seed: int
    weights: Weights
    precision: str
    sampler: SamplerSettings

    def with_guidance(self, scale: float) -> Conditions:
        """The same at another guidance scale."""
        guidance = replace(self.sampler.guidance, scale=scale)
        return replace(self, sampler=replace(self.sampler, guidance=guidance))

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """For the records. The batch counts only where the routing of an image depends on it."""
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
        return shown | ({"batch_images": self.batch_images} if depends_on_batch(config) else {})

    def row(self, config: RunConfig, images_seen: int) -> EvalRow:
        """A row of these conditions that still lacks its metric and value."""
        return EvalRow(
            images_seen=images_seen, metric="", value=0.0, num_samples=self.num_images,
            seed=self.seed, weights=self.weights, settings=self.settings(config),
        )  # fmt: skip


def depends_on_batch(config: RunConfig) -> bool:
    """Whether other images of a batch change an image: tokens compete for slots across images."""
    return config.routing.name != "dense" and config.routing.group_images not in (None, 1)


def training_conditions(config: RunConfig, precision: str) -> Conditions:
    """What is measured on samples while a run trains (`eval.metric_images`), and the default of `ecdit evaluate`."""
    sampler = SamplerSettings(config.eval.sample_steps, Guidance(config.eval.guidance))
    return Conditions(config.eval.metric_images, config.eval.batch_images, config.data.seed, "ema", precision, sampler)
