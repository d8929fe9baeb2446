"""The map between named parameters and the flat fp32 partitions that a process holds, for every ZeRO stage.

ZeRO-1 and 2 hold one flat fp32 tensor per parameter group on each process, its partition of the master weights. ZeRO-3
does the same but cuts every parameter by itself. ZeRO-0 has only the module's own parameters. Optimizer state and the
moving average have the layout of the master weights. This module describes each of them as stretches of parameters: the
elements [start, stop) of the flattened global parameter, in which stacked experts are ordered by their global number.
A checkpoint of stretches is therefore independent of the layout that wrote it. Only this module reads the internals of
DeepSpeed's optimizers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.distributed.deepspeed_library import all_gather_dp_groups, dist, groups
from experiments.layers.expert_parallel import ExpertShare

Read = Callable[[str, int, int], Tensor]
"""Takes (name, start, stop) and returns these elements of the flattened parameter, fp32 [stop - start]."""


@dataclass(frozen=True)
class Piece:
    """A process's part of a parameter: `flats[flat][offset : offset + numel]` are its elements from `start` on."""

    flat: int
    offset: int
    start: int
    numel: int


@dataclass(frozen=True)
class Stretch:
    """Consecutive elements `numbers`, fp32, of the flattened parameter `name`, which begin at `start`."""

    name: str
    start: int
    numbers: Tensor


class Partitions(ABC):
    """The fp32 weights that a process holds, as `flats`, and where in the global parameters they belong (`pieces`).

    `keys` are the tensors under which the optimizer keeps the state of each flat. `shapes` has the global shape of
    every parameter, with the experts of all processes.
    """

    master_is_module: bool
    """Says whether the module's own parameters are the only fp32 weights, without a separate master copy."""

    def __init__(self, module: nn.Module, share: ExpertShare) -> None:
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        self.share = share
        self.keys: list[Tensor] = []
        self.flats: list[Tensor] = []
        self.pieces: dict[str, Piece] = {}
        self.shapes = {name: self._global_shape(parameter) for name, parameter in self.parameters.items()}

    @abstractmethod
    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """Copies tensors laid out like the master weights into the module's own parameters. Collective."""

    def let_go(self) -> None:  # noqa: B027
        """Releases weights gathered from other processes, which are about to change (ZeRO-3 only)."""

    def refresh_module(self) -> None:
        """Copies the master weights into the module's own (possibly bf16) parameters. Collective."""
        self.copy_to_module(self.flats)

    def stretches(self, flats: Sequence[Tensor]) -> Iterator[Stretch]:
        """Yields what this process saves of tensors laid out like the master weights.

        Stretches are views. Over all processes each element is saved exactly once.
        """
        for name, piece in self.pieces.items():
            first, last = self._saved(name, piece)
            if last > first:
                numbers = flats[piece.flat].detach().narrow(0, piece.offset + first, last - first)
                yield Stretch(name, piece.start + first, numbers)

    def fill(self, read: Read, flats: Sequence[Tensor]) -> None:
        """Fills `flats` with this process's part of every parameter, which `read` supplies."""
        for name, piece in self.pieces.items():
            place = flats[piece.flat].detach().narrow(0, piece.offset, piece.numel)
            place.copy_(read(name, piece.start, piece.start + piece.numel))

    def wanted(self) -> dict[str, tuple[int, int]]:
        """Returns the elements [start, stop) that `fill` reads of each parameter."""
        return {name: (piece.start, piece.start + piece.numel) for name, piece in self.pieces.items()}

    def _saved(self, name: str, piece: Piece) -> tuple[int, int]:
        """Returns [first, last) within the piece that this process saves; it holds the whole piece."""
        return 0, piece.numel

    def _global_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        return (shape[0] * self.share.count, *shape[1:]) if _is_expert(parameter) else shape

    def _first(self, parameter: nn.Parameter) -> int:
        """Returns where this process's tensor begins in the flattened global parameter."""
        return self.share.place * parameter.numel() if _is_expert(parameter) else 0


class ShardedStates(Partitions):
    """The partitions of ZeRO-1 and 2, read from DeepSpeed's own map from parameters to fragments."""

    master_is_module = False

    def __init__(self, module: nn.Module, share: ExpertShare, zero: Any) -> None:
        super().__init__(module, share)
        self.zero = zero
        self.flats = self.keys = zero.single_partition_of_fp32_groups
        group_of = {id(p): index for index, group in enumerate(zero.bit16_groups) for p in group}
        missing = [name for name, p in self.parameters.items() if id(p) not in group_of]
        assert not missing, f"parameters outside the optimizer: {missing}"
        for name, parameter in self.parameters.items():
            # DeepSpeed calls the 16-bit weights "lp" and the fp32 ones "hp". The mapping is None where no fragment of
            # the parameter lies in this process's partition.
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                start = self._first(parameter) + there.start
                self.pieces[name] = Piece(group_of[id(parameter)], here.start, start, here.numel)

    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """Copies this process's partition to the module, then all-gathers the others, as DeepSpeed's step does."""
        zero = self.zero
        for flat, parts, group in zip(
            flats, zero.parallel_partitioned_bit16_groups, zero.real_dp_process_group, strict=True
        ):
            parts[dist.get_rank(group=group)].data.copy_(flat.data)
        all_gather_dp_groups(
            groups_flat=zero.bit16_groups_flat,
            partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
            dp_process_group=zero.real_dp_process_group,
            start_alignment_factor=zero.nccl_start_alignment_factor,
            allgather_bucket_size=zero.allgather_bucket_size,
        )


class ShardedWeights(Partitions):
    """The partitions of ZeRO-3, which gives every process an equal part of every parameter and pads the last parts."""

    def __init__(self, module: nn.Module, share: ExpertShare, zero: Any) -> None:
        super().__init__(module, share)
        self.zero = zero
        self.flats = self.keys = zero.fp32_partitioned_groups_flat
        self.master_is_module = self.flats[0] is zero.fp16_partitioned_groups_flat[0]
        for name, parameter in self.parameters.items():
            # All parts have `size` elements, so a process may hold nothing but padding of a small parameter.
            flat, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            start = dist.get_rank() * size
            numel = min(size, math.prod(parameter.ds_shape) - start)  # type: ignore[attr-defined]
            if numel > 0:
                self.pieces[name] = Piece(flat, offset, start, numel)

    @torch.no_grad()
    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """Copies only this process's partition, since layers gather the others' when they need them."""
        self.let_go()
        for own, flat in zip(self.zero.fp16_partitioned_groups_flat, flats, strict=True):
            if own is not flat:
                own.data.copy_(flat.data)

    def let_go(self) -> None:
        """Releases gathered weights, which DeepSpeed otherwise keeps when it expects the next call to need them."""
        self.zero.parameter_offload.partition_all_parameters()


class WholeStates(Partitions):
    """ZeRO-0 in fp32, where only the module's parameters exist; processes with equal ones share the work of saving."""

    master_is_module = True

    def __init__(self, module: nn.Module, share: ExpertShare) -> None:
        super().__init__(module, share)
        self.keys = list(self.parameters.values())
        self.flats = [parameter.detach().view(-1) for parameter in self.parameters.values()]
        for place, (name, parameter) in enumerate(self.parameters.items()):
            self.pieces[name] = Piece(place, 0, self._first(parameter), parameter.numel())

    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """Copies `flats` to the module; the master weights already are the module's parameters and are skipped."""
        for own, flat in zip(self.flats, flats, strict=True):
            if own is not flat:
                own.copy_(flat)

    def _saved(self, name: str, piece: Piece) -> tuple[int, int]:
        """Divides a parameter equally between the processes that hold the same copy of it."""
        is_expert = _is_expert(self.parameters[name])
        group = groups._get_expert_data_parallel_group(self.share.group_name) if is_expert else None
        rank, world = dist.get_rank(group=group), dist.get_world_size(group=group)
        return piece.numel * rank // world, piece.numel * (rank + 1) // world


def partitions_of(module: nn.Module, share: ExpertShare, zero_stage: int, optimizer: Any) -> Partitions:
    """Returns the partitions of `module` for this ZeRO stage; `optimizer` is the DeepSpeed engine's."""
    if zero_stage == 0:
        return WholeStates(module, share)
    return (ShardedWeights if zero_stage == 3 else ShardedStates)(module, share, optimizer)


def _is_expert(parameter: nn.Parameter) -> bool:
    """Returns whether processes hold different experts in this parameter (see `ExpertShare.mark`)."""
    return not getattr(parameter, "allreduce", True)
