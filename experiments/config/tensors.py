"""Computes the sizes of a model's parameter tensors, in the module's order, and how ZeRO-1 and 2 partition them.

A process's parameter partition is an even slice of a group of parameters that are laid end to end, but DeepSpeed 0.19.8
keeps the *whole* gradient of every tensor that this slice touches (`copy_grads_in_partition`). Where the experts of a
layer are one large tensor, that is far more than the slice; `Shares.kept` says how much.

A test compares the sizes with the parameters of the real module.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from experiments.config.budget import TIME_FREQUENCIES, hidden_width
from experiments.config.data_sets import captions_of
from experiments.config.schema import RunConfig

EXPERT_GROUP_ELEMENTS = 178_956_971
"""The most elements in one optimizer group of experts (`max_group_size` of DeepSpeed's
`split_params_into_different_moe_groups_for_optimizer`); a larger tensor is a group of its own."""


@dataclass(frozen=True)
class TensorGroup:
    """Describes parameters that are flattened, partitioned and optimized together; `sizes` are in elements."""

    sizes: tuple[int, ...]
    num_partitions: int
    ranks_per_partition: int
    """The number of consecutive processes that share a partition number: 1, or the expert-parallel group's size."""

    @property
    def partition_elements(self) -> int:
        """Returns the elements of one partition. Partitions are padded to an even size."""
        return 2 * -(-sum(self.sizes) // (2 * self.num_partitions))


@dataclass(frozen=True)
class Shares:
    """Counts, in elements, what one process optimizes with ZeRO-1 or 2 of the parameters that it holds."""

    partition: int
    """Elements of its partitions of all groups together."""
    largest_group: int
    """Elements of its partition of the largest group. Groups are optimized one after the other."""
    kept: int
    """Elements of all tensors that its partitions touch, on the process for which that is largest."""
    before_last: int
    """Elements of its partition of the largest group before the last one; 0 with one group."""
    last: int
    """Elements of its partition of the last group, which is stepped when no other gradients wait."""


def tensor_sizes(config: RunConfig) -> Iterator[tuple[int, bool]]:
    """Yields (elements, whether it holds experts) for every parameter of the whole model, in the module's order."""
    model, data = config.model, config.data
    d, patch = model.width, model.patch_size**2 * data.channels
    dense = [2 * d, patch * d, d, TIME_FREQUENCIES * d, d, d * d, d, 6 * d * d, 6 * d]
    yield from ((size, False) for size in (*dense, *captions_of(config).encoder_sizes(model)))
    for layer in range(model.num_layers):
        yield from ((size, False) for size in (6 * d, *_attention_sizes(config), *_attention_sizes(config)))
        yield from _feed_forward_sizes(config, layer)
    yield from ((d * patch, False), (patch, False))


def shares(config: RunConfig) -> Shares:
    """Returns what a process optimizes with ZeRO-1 or 2 in the layout of `config.parallel`."""
    world = config.parallel.world
    groups = _groups(_sizes_of(config), world, experts_spread(config))
    partitions = [group.partition_elements for group in groups]
    return Shares(
        partition=sum(partitions),
        largest_group=max(partitions),
        kept=_kept_elements(groups, world),
        before_last=max(partitions[:-1], default=0),
        last=partitions[-1],
    )


def largest_tensor(config: RunConfig) -> int:
    """Returns the elements of the largest parameter that one process holds."""
    spread = experts_spread(config)
    return max(size // spread if is_expert else size for size, is_expert in _sizes_of(config))


def experts_spread(config: RunConfig) -> int:
    """Returns over how many processes the experts of a layer are distributed; 1 in a dense run."""
    return config.parallel.expert_parallel if config.sparse_layer_indices else 1


def _sizes_of(config: RunConfig) -> tuple[tuple[int, bool], ...]:
    """Returns `tensor_sizes` from a cache, whose key leaves out the sections that it does not read."""
    plain = config.model_copy(update={"parallel": None, "train": None, "eval": None, "optim": None})
    return _remembered_sizes(plain)


@lru_cache(maxsize=64)
def _remembered_sizes(config: RunConfig) -> tuple[tuple[int, bool], ...]:
    return tuple(tensor_sizes(config))


def _attention_sizes(config: RunConfig) -> tuple[int, ...]:
    """Returns the elements of query, key and value, output, and the norms of query and key."""
    d, head = config.model.width, config.model.width // config.model.num_heads
    return (d * d, 2 * d * head * config.model.num_kv_heads, d * d, head, head)


def _feed_forward_sizes(config: RunConfig, layer: int) -> Iterator[tuple[int, bool]]:
    d, routing = config.model.width, config.routing
    if layer not in config.sparse_layer_indices:
        yield from ((d * hidden_width(config, config.model.ffn_factor), False),) * 2
        return
    sides = 2 if routing.expert == "swiglu" else 1
    expert = d * hidden_width(config, routing.expert_factor or 0)
    yield d * routing.num_experts, False
    yield routing.num_experts * sides * expert, True
    yield routing.num_experts * expert, True
    shared = d * hidden_width(config, routing.shared_factor or 0)
    if shared:
        yield from ((sides * shared, False), (shared, False))


@lru_cache(maxsize=4096)
def _groups(sizes: tuple[tuple[int, bool], ...], world: int, spread: int) -> tuple[TensorGroup, ...]:
    """Returns one group of all parameters or, with expert parallelism, one without experts and others of experts."""
    if spread == 1:
        return (TensorGroup(tuple(size for size, _ in sizes), world, 1),)
    groups = [TensorGroup(tuple(size for size, is_expert in sizes if not is_expert), world, 1)]
    current: list[int] = []
    for size in (size // spread for size, is_expert in sizes if is_expert):
        if current and sum(current) + size > EXPERT_GROUP_ELEMENTS:
            groups.append(TensorGroup(tuple(current), world // spread, spread))
            current = []
        current.append(size)
    return (*groups, TensorGroup(tuple(current), world // spread, spread))


@lru_cache(maxsize=4096)
def _kept_elements(groups: tuple[TensorGroup, ...], world: int) -> int:
    """Returns `Shares.kept`: the largest sum over groups of any process. Equal groups are looked at only once."""
    by_group = [(_touched(group), group.ranks_per_partition, times) for group, times in Counter(groups).items()]
    return max(sum(times * touched[rank // ranks] for touched, ranks, times in by_group) for rank in range(world))


def _touched(group: TensorGroup) -> Sequence[int]:
    """Returns, for every partition, the elements of all tensors that overlap it."""
    size, touched = group.partition_elements, [0] * group.num_partitions
    # Tensors are laid end to end, so that a tensor overlaps the partitions from that of its first element to that of
    # its last. DeepSpeed keeps its whole gradient on each of these processes.
    for start, stop in itertools.pairwise(itertools.accumulate(group.sizes, initial=0)):
        for part in range(start // size, -(-stop // size)):
            touched[part] += stop - start
    return touched
