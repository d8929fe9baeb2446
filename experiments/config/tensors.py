"""The parameter tensors of a model in the order of the real module, by arithmetic; and how ZeRO-1 and 2 cut them up.

A process's share of the master weights is an even cut of a group of parameters laid end to end, but DeepSpeed 0.19.8
keeps the *whole* gradient of every tensor that this cut touches (`copy_grads_in_partition`). Where the experts of a
layer are one tensor of many numbers, that is far more than the share; `kept_elements` says how much.

A test holds the tensors equal to the parameters of the real module.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from experiments.config.budget import TIME_FREQUENCIES, hidden_width
from experiments.config.schema import RunConfig

EXPERT_GROUP_ELEMENTS = 178_956_971
"""Experts are optimized in groups of at most so many numbers (`max_group_size` of DeepSpeed's
`split_params_into_different_moe_groups_for_optimizer`); a larger tensor is a group of its own."""


@dataclass(frozen=True)
class Group:
    """Parameters that are flattened, cut and optimized together."""

    sizes: tuple[int, ...]
    num_partitions: int
    ranks_per_partition: int
    """Consecutive processes that hold the same part: 1, or the size of an expert-parallel group."""

    @property
    def partition_elements(self) -> int:
        """Numbers of one part. Parts are padded to an even size."""
        return 2 * -(-sum(self.sizes) // (2 * self.num_partitions))


@dataclass(frozen=True)
class Shares:
    """What one process of ZeRO-1 or 2 has of the parameters that it holds, in numbers."""

    partition: int
    """Its cut of all groups."""
    largest_group: int
    """Its cut of the largest group: groups are optimized one after the other."""
    kept: int
    """Of the tensors that its cut touches, on the process that has most of them."""
    num_groups: int
    before_last: int
    """Its cut of the largest group but the last: while those are optimized, the gradients of all still wait."""
    last: int


def tensor_sizes(config: RunConfig) -> Iterator[tuple[int, bool]]:
    """(numbers, whether it holds experts) of every parameter of the whole model, in the order of the module."""
    model, data = config.model, config.data
    d, patch = model.width, model.patch_size**2 * data.channels
    dense = [2 * d, patch * d, d, TIME_FREQUENCIES * d, d, d * d, d, 6 * d * d, 6 * d]
    yield from ((size, False) for size in (*dense, *_text_sizes(config)))
    for layer in range(model.num_layers):
        yield from ((size, False) for size in (6 * d, *_attention_sizes(config), *_attention_sizes(config)))
        yield from _feed_forward_sizes(config, layer)
    yield from ((d * patch, False), (patch, False))


def shares(config: RunConfig) -> Shares:
    """Of the layout in `config.parallel`, for ZeRO-1 and 2."""
    world = config.parallel.world
    groups = _groups(_sizes_of(config), world, experts_spread(config))
    partitions = [group.partition_elements for group in groups]
    return Shares(
        partition=sum(partitions),
        largest_group=max(partitions),
        kept=_kept_elements(groups, world),
        num_groups=len(groups),
        before_last=max(partitions[:-1], default=0),
        last=partitions[-1],
    )


def largest_tensor(config: RunConfig) -> int:
    """Numbers of the largest parameter that one process holds."""
    spread = experts_spread(config)
    return max(size // spread if is_expert else size for size, is_expert in _sizes_of(config))


def experts_spread(config: RunConfig) -> int:
    """Processes that the experts of a layer are spread over. A dense run has none to spread."""
    return config.parallel.expert_parallel if config.sparse_layer_indices else 1


def _sizes_of(config: RunConfig) -> tuple[tuple[int, bool], ...]:
    """`tensor_sizes`, remembered: the layouts of one model differ in nothing that it reads."""
    plain = config.model_copy(update={"parallel": None, "train": None, "eval": None, "optim": None})
    return _remembered_sizes(plain)


@lru_cache(maxsize=64)
def _remembered_sizes(config: RunConfig) -> tuple[tuple[int, bool], ...]:
    return tuple(tensor_sizes(config))


def _attention_sizes(config: RunConfig) -> tuple[int, ...]:
    """Query, key and value, output, and the norms of query and key."""
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


def _text_sizes(config: RunConfig) -> tuple[int, ...]:
    data, d, w = config.data, config.model.width, config.model.text_width
    if data.text_width is not None and data.pooled_width is not None:
        return (data.text_width * d, d, d * d, d, data.pooled_width * d, d, d * d, d)
    assert data.vocab_size is not None
    block = (w, w, 3 * w * w, w * w, 4 * w * w, 4 * w * w)
    return (data.caption_length * w, data.vocab_size * w, *(block * config.model.text_layers), w, w * d, d)


@lru_cache(maxsize=4096)
def _groups(sizes: tuple[tuple[int, bool], ...], world: int, spread: int) -> tuple[Group, ...]:
    """One of all parameters; with expert parallelism one without the experts, and these by `EXPERT_GROUP_ELEMENTS`."""
    if spread == 1:
        return (Group(tuple(size for size, _ in sizes), world, 1),)
    groups = [Group(tuple(size for size, is_expert in sizes if not is_expert), world, 1)]
    current: list[int] = []
    for size in (size // spread for size, is_expert in sizes if is_expert):
        if current and sum(current) + size > EXPERT_GROUP_ELEMENTS:
            groups.append(Group(tuple(current), world // spread, spread))
            current = []
        current.append(size)
    return (*groups, Group(tuple(current), world // spread, spread))


@lru_cache(maxsize=4096)
def _kept_elements(groups: tuple[Group, ...], world: int) -> int:
    """The largest sum over groups, of any process. Most groups of experts are alike and are looked at once."""
    by_group = [(_touched(group), group.ranks_per_partition, times) for group, times in Counter(groups).items()]
    return max(sum(times * touched[rank // ranks] for touched, ranks, times in by_group) for rank in range(world))


def _touched(group: Group) -> Sequence[int]:
    """For every part, the numbers of the tensors that reach into it."""
    size, touched = group.partition_elements, [0] * group.num_partitions
    for start, stop in itertools.pairwise(itertools.accumulate(group.sizes, initial=0)):
        for part in range(start // size, -(-stop // size)):
            touched[part] += stop - start
    return touched
