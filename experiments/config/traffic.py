"""Calculates how many bytes one process sends to others in an optimizer step.

Gradients, weights and expert slots travel in working precision, through the collectives of DeepSpeed 0.19.8. In a ring
all-reduce of N bytes among n processes each sends 2 N (n - 1) / n bytes, in an all-gather or reduce-scatter half of
that. The ZeRO stages differ as follows:

- Stage 0 all-reduces gradients once, after the last accumulation step.
- Stage 1 does the same, and then all-gathers the updated weights.
- Stage 2 reduces gradients after every accumulation step, and all-gathers the updated weights. It reduces by an
  all-reduce of which each process keeps its part (`use_multi_rank_bucket_allreduce`, the default).
- Stage 3 gathers weights in every accumulation step for the forward and again for the backward pass, except those that
  are still in memory, and reduce-scatters gradients.

The gradients of experts are reduced among the processes that hold the same experts. Each routed layer sends its slots
to their experts and the results back, and does so again in the backward pass, and a third time with activation
checkpointing. Losses, norms and flags are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments.config.activations import exchanged_slots, working_bytes
from experiments.config.budget import budget
from experiments.config.memory import REUSED_ELEMENTS
from experiments.config.schema import RunConfig
from experiments.config.tensors import experts_spread
from experiments.config.zero_stage import planned_stage

Operation = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]


@dataclass(frozen=True)
class Transfer:
    """Describes one kind of data that processes exchange, and the collective that does it."""

    what: str
    operation: Operation
    bytes_sent: int
    """The bytes that each process sends in an optimizer step."""
    group: int
    """The number of processes that take part."""
    stride: int
    """The distance between ranks of neighbours in the group: 1, or the size of an expert-parallel group."""


def transfers(config: RunConfig, on_accelerator: bool) -> list[Transfer]:
    """Returns every transfer of a step, without those that have no receiver."""
    found = [*_of_weights(config, on_accelerator), *_of_slots(config, on_accelerator)]
    return [transfer for transfer in found if transfer.bytes_sent]


def _of_weights(config: RunConfig, on_accelerator: bool) -> list[Transfer]:
    """Returns the transfers of gradients and weights; with expert parallelism those of experts are separate."""
    world, spread, width = config.parallel.world, experts_spread(config), working_bytes(config, on_accelerator)
    params = budget(config).params_by_part
    total, experts = sum(params.values()), params["experts"]
    stage = planned_stage(config, on_accelerator)
    if spread == 1:
        return _of_group(config, stage, "", total * width, world, 1)
    dense = _of_group(config, stage, " outside experts", (total - experts) * width, world, 1)
    return dense + _of_group(config, stage, " of experts", experts // spread * width, world // spread, spread)


def _of_group(config: RunConfig, stage: int, whose: str, size: int, group: int, stride: int) -> list[Transfer]:
    """Returns the transfers for `size` bytes that the processes of `group` all hold, or hold partitions of."""
    times = config.train.accumulation
    ring = size * (group - 1) / group

    def transfer(what: str, operation: Operation, sent: float) -> Transfer:
        return Transfer(what + whose, operation, round(sent), group, stride)

    if stage == 3:
        # ZeRO-3 keeps up to REUSED_ELEMENTS gathered weights alive between the passes; the rest is gathered again.
        again = max(0.0, 1 - REUSED_ELEMENTS / max(1, sum(budget(config).params_by_part.values())))
        return [
            transfer("weights", "all-gather", times * (1 + again) * ring),
            transfer("gradients", "reduce-scatter", times * ring),
        ]
    reduced = transfer("gradients", "all-reduce", 2 * ring * (times if stage == 2 else 1))
    return [reduced] if stage == 0 else [reduced, transfer("updated weights", "all-gather", ring)]


def _of_slots(config: RunConfig, on_accelerator: bool) -> list[Transfer]:
    spread, train = experts_spread(config), config.train
    # The forward pass and the backward pass each send slots to the experts and back, and so does a recomputed forward.
    passes = 6 if config.parallel.activation_checkpointing else 4
    slots = config.micro_batch_images * exchanged_slots(config)
    size = slots * config.model.width * working_bytes(config, on_accelerator)
    times = passes * train.accumulation
    return [Transfer("expert slots", "all-to-all", round(times * size * (spread - 1) / spread), spread, 1)]
