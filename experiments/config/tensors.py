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
from typing import NamedTuple

from experiments.config.block_sizes import (
    bias_sizes,
    block_tensors,
    dense_tensors,
    head_width,
    hidden_width,
    linear_sizes,
)
from experiments.config.blocks import block_of
from experiments.config.budget import TIME_FREQUENCIES
from experiments.config.data_sets import captions_of
from experiments.config.parametrization import rate_factor
from experiments.config.repa import projector_sizes
from experiments.config.router_sizes import mixes_blocks, router_tensors
from experiments.config.schema import RunConfig
from experiments.config.text_stream import TokenStream, streams
from experiments.config.train_settings import TrainConfig

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


class TensorSize(NamedTuple):
    """Describes one parameter of the module."""

    name: str
    elements: int
    is_expert: bool = False


def tensor_sizes(config: RunConfig) -> Iterator[TensorSize]:
    """Yields every parameter of the whole model, in the module's order."""
    model, data = config.model, config.data
    d, patch = model.width, model.patch_size**2 * data.channels
    shared_modulation = block_of(config).shared_modulation
    if shared_modulation:
        yield TensorSize("modulation_2D", 2 * d)
    yield from _linear("embed", patch, d)
    yield from _linear("time.mlp_in", TIME_FREQUENCIES, d)
    yield from _linear("time.mlp_out", d, d)
    if shared_modulation:
        yield from _linear("time.modulation", d, 6 * d)
    yield from (TensorSize(f"text.{name}", size) for name, size in captions_of(config).encoder_sizes(model))
    for layer in range(model.num_layers):
        block = f"blocks.{layer}"
        yield from (TensorSize(f"{block}.{name}", size) for name, size in block_tensors(config, layer))
        for stream in streams(config):
            yield from _feed_forward_sizes(stream, layer)
            if not stream.is_text and mixes_blocks(config) and layer in config.sparse_layer_indices:
                yield from _mixture_sizes(config, f"{block}.switch")
    if not shared_modulation:
        yield from _linear("modulation", d, 2 * d)
    yield from _linear("head", d, head_width(config))
    for layer_sizes in projector_sizes(config):
        yield from _linear(*layer_sizes)


def _linear(name: str, fan_in: int, fan_out: int) -> Iterator[TensorSize]:
    return (TensorSize(*each) for each in linear_sizes(name, fan_in, fan_out))


def shares(config: RunConfig) -> Shares:
    """Returns what a process optimizes with ZeRO-1 or 2 in the layout of `config.parallel`."""
    world = config.parallel.world
    groups = optimizer_groups(config)
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
    return max(size // spread if is_expert else size for size, is_expert, _ in _sizes_of(config))


def experts_spread(config: RunConfig) -> int:
    """Returns over how many processes the experts of a layer are distributed; 1 in a dense run."""
    return config.parallel.expert_parallel if config.sparse_layer_indices else 1


class _Size(NamedTuple):
    """Holds what the arithmetic of groups needs of one parameter."""

    elements: int
    is_expert: bool
    rate_factor: float


def _sizes_of(config: RunConfig) -> tuple[_Size, ...]:
    """Returns `tensor_sizes` from a cache, whose key leaves out the sections that it does not read."""
    # Soft MoE has a vector for each slot, and REPA has a network of its own.
    train = TrainConfig(mask_ratio=config.train.mask_ratio, repa_weight=config.train.repa_weight)
    plain = config.model_copy(update={"parallel": None, "train": train, "eval": None, "optim": None})
    return _remembered_sizes(plain)


@lru_cache(maxsize=64)
def _remembered_sizes(config: RunConfig) -> tuple[_Size, ...]:
    return tuple(_Size(size, is_expert, rate_factor(config, name)) for name, size, is_expert in tensor_sizes(config))


def _feed_forward_sizes(stream: TokenStream, layer: int) -> Iterator[TensorSize]:
    config, name = stream.config, f"blocks.{layer}.{stream.prefix}ffn"
    if layer in stream.dense:
        yield from (TensorSize(f"{name}.{matrix}", size) for matrix, size in dense_tensors(config))
    if layer not in stream.routed or mixes_blocks(config):
        return
    d, routing = config.model.width, config.routing
    sides, num_experts = 2 if routing.expert == "swiglu" else 1, routing.num_experts
    hidden, shared = (hidden_width(config, factor or 0) for factor in (routing.expert_factor, routing.shared_factor))
    yield from (TensorSize(f"{name}.router.{weight}", size) for weight, size in router_tensors(config).items())
    yield TensorSize(f"{name}.experts.w_in_EFD", num_experts * sides * d * hidden, is_expert=True)
    yield TensorSize(f"{name}.experts.w_out_EFD", num_experts * d * hidden, is_expert=True)
    for bias, size in zip(("b_in_EF", "b_out_ED"), bias_sizes(config, hidden), strict=False):  # there may be none
        yield TensorSize(f"{name}.experts.{bias}", num_experts * size, is_expert=True)
    for part, columns in (("shared", shared), ("unconditional", hidden if routing.unconditional_expert else 0)):
        b_in, b_out = bias_sizes(config, columns) or (0, 0)
        for matrix, weight, bias_size in (("w_in", sides * d * columns, b_in), ("w_out", d * columns, b_out)):
            if columns:
                yield TensorSize(f"{name}.{part}.{matrix}.weight", weight)
            if columns and bias_size:
                yield TensorSize(f"{name}.{part}.{matrix}.bias", bias_size)


def _mixture_sizes(config: RunConfig, name: str) -> Iterator[TensorSize]:
    d, num_experts = config.model.width, config.routing.num_experts
    yield from (TensorSize(f"{name}.router.{weight}", size) for weight, size in router_tensors(config).items())
    yield TensorSize(f"{name}.experts.weight_EDD", num_experts * d * d, is_expert=True)
    yield TensorSize(f"{name}.experts.bias_ED", num_experts * d, is_expert=True)


def optimizer_groups(config: RunConfig) -> tuple[TensorGroup, ...]:
    """Returns the groups in which the parameters of `config` are optimized, in the optimizer's order.

    There is one for each factor on the learning rate and, with expert parallelism, others with the experts of each.
    """
    sizes, world, spread = _sizes_of(config), config.parallel.world, experts_spread(config)
    factors = sorted({size.rate_factor for size in sizes}, key=lambda factor: factor != 1)
    split = [_groups(tuple(size[:2] for size in sizes if size.rate_factor == each), world, spread) for each in factors]
    return (*(groups[0] for groups in split), *(group for groups in split for group in groups[1:]))


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
    return (*groups, TensorGroup(tuple(current), world // spread, spread)) if current else tuple(groups)


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
