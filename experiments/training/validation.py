"""Validation loss on a fixed set of (image, t, noise), in total and by tenths of t, under two ways of batching t.

Losses of different objectives have different units. The velocity error, which all objectives share, is measured beside
the loss: in the same detail where it is another number, and else in total alone.
With `mixed_t` a batch holds all timesteps, as in training. With `same_t` it holds a single one, as in sampling, where a
router that counts capacity over the batch meets other loads. Images and noise are the same in both.

Legend: B images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from experiments.config.budget import compute_varies, executed_flops_per_image
from experiments.config.metrics import VELOCITY_ERROR
from experiments.config.objectives import loss_is_velocity_error
from experiments.config.schema import RunConfig
from experiments.data.loader import Batch, same_time_batches, validation_set
from experiments.distributed.agreement import everyone
from experiments.errors import RunFailedError
from experiments.models.dit import DiT
from experiments.records.record_types import EvalRow, RoutingRow, Weights
from experiments.routing.router import Router
from experiments.routing.stats import NUM_TIME_BUCKETS, RoutingStats
from experiments.training.diagnosis import nonfinite_cause, nonfinite_error
from experiments.training.objective import forward_losses, to_device

Condition = Literal["mixed_t", "same_t"]


@dataclass(frozen=True)
class ValidationLosses:
    """The losses of this process's images by batch, and the statistics of the routed layers."""

    losses: list[tuple[int, list[tuple[float, float, float]]]]
    """The number of each batch, with the loss, the velocity error and the t of each of its images."""
    stats: dict[int, RoutingStats]


class ValidatedModel(Protocol):
    """A model as `Validator` needs it, with the place of this process among those that share the work."""

    @property
    def model(self) -> DiT:
        """Returns the model."""

    @property
    def device(self) -> torch.device:
        """Returns the device of the model."""

    @property
    def rank(self) -> int:
        """Returns the number of this process."""

    @property
    def world(self) -> int:
        """Returns the number of processes."""

    @property
    def layers_are_collective(self) -> bool:
        """Says whether calling the model is collective."""


class Validator:
    """Measures a model on the fixed validation set of a run, which it keeps in memory."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        flow = config.flow
        self.loss_is_velocity_error = loss_is_velocity_error(flow.objective, flow.prediction)
        self.batches: dict[Condition, Sequence[Batch]] = {
            "mixed_t": validation_set(config),
            "same_t": same_time_batches(config),
        }

    def measure(
        self, engine: ValidatedModel, images_seen: int, weights: Weights
    ) -> tuple[list[EvalRow], list[RoutingRow]]:
        """Returns rows for `evals.jsonl` and `routing.jsonl`, equal on every process. Collective.

        Raises `RunFailedError` where a loss is not finite.
        """
        evals: list[EvalRow] = []
        routing: list[RoutingRow] = []
        for condition in self.batches:
            losses, stats = self._measured(engine, condition)
            if not all(math.isfinite(loss) for loss, _, _ in losses):
                raise self._not_finite(engine, condition, images_seen, weights)
            row = EvalRow(
                images_seen=images_seen, metric="", value=0.0, num_samples=len(losses),
                seed=self.config.data.seed, weights=weights,
            )  # fmt: skip
            values = self._loss_values(losses, condition) | self._layer_values(stats, condition)
            if condition == "mixed_t" and self.config.routing.eval_decision != "same":
                values |= self._loss_of_training_decision(engine)
            evals += [row.model_copy(update={"metric": m, "value": v}) for m, v in values.items()]
            if weights == "raw":
                routing += [stats[layer].row(images_seen, layer, condition) for layer in sorted(stats)]
        return evals, routing

    def _measured(
        self, engine: ValidatedModel, condition: Condition
    ) -> tuple[list[tuple[float, float, float]], dict[int, RoutingStats]]:
        """Returns the losses of all images, and the statistics of all layers, of every process. Collective."""
        mine = measure_batches(
            engine.model, self.batches[condition], engine.device, self.config, engine.rank, engine.world,
            engine.layers_are_collective,
        )  # fmt: skip
        return _merge(everyone(mine, engine.world))

    def _loss_values(self, losses: list[tuple[float, float, float]], condition: Condition) -> dict[str, float]:
        """Returns mean losses and velocity errors over the set."""
        values = _mean_values("val_loss", [(loss, t) for loss, _, t in losses], condition)
        errors = _mean_values(VELOCITY_ERROR, [(error, t) for _, error, t in losses], condition)
        if self.loss_is_velocity_error:
            errors = {name: value for name, value in errors.items() if name == VELOCITY_ERROR}
        return values | errors

    def _layer_values(self, stats: dict[int, RoutingStats], condition: Condition) -> dict[str, float]:
        """Returns the share of tokens that no expert processed, as the mean over layers, and FLOPs where they vary.

        It is empty for dense models.
        """
        if not stats:
            return {}
        suffix = "" if condition == "mixed_t" else "_same_t"
        values = {f"dropped_share{suffix}": sum(one.dropped_share for one in stats.values()) / len(stats)}
        if compute_varies(self.config, training=False):
            slots = sum(one.slots_per_image for one in stats.values())
            flops = executed_flops_per_image(self.config, slots, training=False)
            values[f"executed_flops_per_image{suffix}"] = flops
        return values

    def _loss_of_training_decision(self, engine: ValidatedModel) -> dict[str, float]:
        """Returns the loss where routers decide as in training, by competition instead of thresholds. Collective."""
        with deciding_as_in_training(engine.model):
            losses, _ = self._measured(engine, "mixed_t")
        values = self._loss_values(losses, "mixed_t")
        names = ("val_loss",) if self.loss_is_velocity_error else ("val_loss", VELOCITY_ERROR)
        return {f"{name}_training_decision": values[name] for name in names if math.isfinite(values[name])}

    def _not_finite(
        self, engine: ValidatedModel, condition: Condition, images_seen: int, weights: Weights
    ) -> RunFailedError:
        """Returns the error for a loss that is not finite, which names the layer where that began. Collective."""
        batches = self.batches[condition]
        engine.model.eval()  # routers decide as they were measured; the run ends here
        turns = turns_of(len(batches), engine.rank, engine.world, together=True)  # all need equally many
        mine = [to_device(batches[number % len(batches)], engine.device) for number in turns]
        cause = nonfinite_cause(engine.model, mine, self.config, engine.world)
        return nonfinite_error(self.config, images_seen, cause, f"validation loss of the {weights} weights")


@contextmanager
def deciding_as_in_training(model: DiT) -> Iterator[None]:
    """Lets the routers of a model in evaluation mode decide as in training, within this context."""
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router in routers:
        router.decides_as_in_training = True
    try:
        yield
    finally:
        for router in routers:
            router.decides_as_in_training = False


@torch.no_grad()
def measure_batches(
    model: DiT,
    batches: Sequence[Batch],
    device: torch.device,
    config: RunConfig,
    rank: int = 0,
    world: int = 1,
    together: bool = False,
) -> ValidationLosses:
    """Measures every `world`-th batch, those of this rank, with the model in evaluation mode.

    `together` means that calling the model is collective: a process without a batch in the last turn then repeats an
    earlier one and ignores its result. The model returns to the mode it was in.
    """
    was_training = model.training
    model.eval()
    measured = ValidationLosses([], {})
    for number in turns_of(len(batches), rank, world, together):
        batch = to_device(batches[number % len(batches)], device)
        losses, output = forward_losses(model, batch, config)
        if number >= len(batches):  # this filler only took part in the collectives of the layers
            continue
        columns = (losses.loss_B.tolist(), losses.velocity_error_B.tolist(), batch.time_B.tolist())
        measured.losses.append((number, list(zip(*columns, strict=True))))
        for layer in config.sparse_layer_indices:
            stats = measured.stats.setdefault(layer, RoutingStats(config.routing.num_experts))
            stats.add(output.feed_forward[layer], batch.time_B)
    model.train(was_training)
    return measured


def turns_of(num_batches: int, rank: int, world: int, together: bool) -> range:
    """Returns the numbers of a rank's batches; with `together` all ranks get equally many.

    Numbers from `num_batches` on are fillers whose results do not count.
    """
    end = -(-num_batches // world) * world if together else num_batches
    return range(rank, end, world)


def _merge(
    measurements: Sequence[ValidationLosses],
) -> tuple[list[tuple[float, float, float]], dict[int, RoutingStats]]:
    """Returns (loss, velocity error, t) of each image in the order of the set, and summed statistics.

    Neither depends on the number of processes.
    """
    batches = sorted(batch for measured in measurements for batch in measured.losses)
    losses = [of_image for _, of_batch in batches for of_image in of_batch]
    stats: dict[int, RoutingStats] = {}
    for measured in measurements:
        for layer, counted in measured.stats.items():
            if layer in stats:
                stats[layer].merge(counted)
            else:
                stats[layer] = counted
    return losses, stats


def _mean_values(name: str, values: list[tuple[float, float]], condition: Condition) -> dict[str, float]:
    """Returns the mean of (value, t) over the set, and for each tenth of t that has an image."""
    name = f"{name}_same_t" if condition == "same_t" else name
    found = {name: sum(value for value, _ in values) / len(values)}
    for bucket in range(NUM_TIME_BUCKETS):
        inside = [value for value, t in values if min(int(t * NUM_TIME_BUCKETS), NUM_TIME_BUCKETS - 1) == bucket]
        if inside:
            found[f"{name}_t{bucket}"] = sum(inside) / len(inside)
    return found
