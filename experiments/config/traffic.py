"""Computes by arithmetic what one process sends to others in an optimizer step.

Gradients, weights and expert slots travel in working precision, by the collectives of DeepSpeed 0.19.8: a ring
all-reduce of N bytes among n processes sends 2 (n - 1) / n N from each, an all-gather or reduce-scatter half of that.
By ZeRO stage:

- 0: gradients are all-reduced once, after the last accumulation step.
- 1: the same, and the updated weights are gathered.
- 2: as 1, but gradients are reduced after every accumulation step; by an all-reduce, of which each process keeps its
  part (`use_multi_rank_bucket_allreduce`, the default).
- 3: in every accumulation step weights are gathered for the forward and for the backward pass, but for those that are
  still there, and gradients are reduce-scattered.

Experts are reduced among the processes that hold the same ones. Each routed layer sends its slots to their experts and
the results back, and the same again in the backward pass; with activation checkpointing a third time. Losses, norms and
flags are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments.config.activations import exchanged_slots, working_bytes
from experiments.config.budget import budget
from experiments.config.memory import REUSED_ELEMENTS
from experiments.config.schema import RunConfig
from experiments.config.tensors import experts_spread

Operation = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]


@dataclass(frozen=True)
class Transfer:
    """Describes one kind of traffic."""

    what: str
    operation: Operation
    bytes_sent: int
    """What each process sends in an optimizer step."""
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
    if spread == 1:
        return _of_group(config, "", total * width, world, 1)
    dense = _of_group(config, " outside experts", (total - experts) * width, world, 1)
    return dense + _of_group(config, " of experts", experts // spread * width, world // spread, spread)


def _of_group(config: RunConfig, whose: str, size: int, group: int, stride: int) -> list[Transfer]:
    """Returns the transfers for `size` bytes that the processes of `group` all hold, or hold partitions of."""
    stage, times = config.parallel.zero_stage, config.train.accumulation
    ring = size * (group - 1) / group

    def transfer(what: str, operation: Operation, sent: float) -> Transfer:
        return Transfer(what + whose, operation, round(sent), group, stride)

    if stage == 3:
        again = max(0.0, 1 - REUSED_ELEMENTS / max(1, sum(budget(config).params_by_part.values())))
        return [
            transfer("weights", "all-gather", times * (1 + again) * ring),
            transfer("gradients", "reduce-scatter", times * ring),
        ]
    reduced = transfer("gradients", "all-reduce", 2 * ring * (times if stage == 2 else 1))
    return [reduced] if stage == 0 else [reduced, transfer("updated weights", "all-gather", ring)]


def _of_slots(config: RunConfig, on_accelerator: bool) -> list[Transfer]:
    spread, train = experts_spread(config), config.train
    passes = 6 if config.parallel.activation_checkpointing else 4
    slots = config.micro_batch_images * exchanged_slots(config)
    size = slots * config.model.width * working_bytes(config, on_accelerator)
    times = passes * len(config.sparse_layer_indices) * train.accumulation
    return [Transfer("expert slots", "all-to-all", round(times * size * (spread - 1) / spread), spread, 1)]
