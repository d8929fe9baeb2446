"""Between named parameters and the flat fp32 tensors that a process keeps of them, whatever the ZeRO stage.

ZeRO-1 and 2 keep one flat fp32 tensor per parameter group on each process, its share of the master weights; ZeRO-3 the
same, cut parameter by parameter; ZeRO-0 nothing but the module's own parameters. Optimizer state and the moving average
have the layout of the master weights. Here each is a set of stretches of parameters: the numbers [start, stop) of the
flattened parameter *of all processes*, in which stacked experts lie by their global number. A checkpoint written by
stretches knows nothing of the layout it came from. What is read from DeepSpeed's optimizers is read here alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.routing.deepspeed_library import all_gather_dp_groups, dist, groups
from experiments.routing.parallel import ExpertShare

Read = Callable[[str, int, int], Tensor]
"""The numbers [start, stop) of a flattened parameter, by its name; fp32 [stop - start]."""


@dataclass(frozen=True)
class Piece:
    """What a process keeps of a parameter: `flats[flat][offset : offset + numel]` are its numbers from `start` on."""

    flat: int
    offset: int
    start: int
    numel: int


@dataclass(frozen=True)
class Stretch:
    """[start, stop) of the flattened parameter `name`, fp32."""

    name: str
    start: int
    numbers: Tensor


class Partitions(ABC):
    """The fp32 weights of a process. `keys`: the same tensors as the optimizer's state knows them. `shapes`: of every
    parameter, with the experts of all processes.
    """

    master_is_module: bool
    """Whether there are no fp32 weights beside the module's own."""

    def __init__(self, module: nn.Module, share: ExpertShare) -> None:
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        self.share = share
        self.keys: list[Tensor] = []
        self.flats: list[Tensor] = []
        self.pieces: dict[str, Piece] = {}
        self.shapes = {name: self._global_shape(parameter) for name, parameter in self.parameters.items()}

    @abstractmethod
    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """Copy tensors laid out like the master weights into the module's own parameters. Collective."""

    def let_go(self) -> None:  # noqa: B027
        """Drop what layers still hold of other processes' weights, since those are about to change."""

    def refresh_module(self) -> None:
        """Copy the master weights into the module's own (possibly bf16) parameters. Collective."""
        self.copy_to_module(self.flats)

    def stretches(self, flats: Sequence[Tensor]) -> Iterator[Stretch]:
        """What this process saves of tensors laid out like the master weights: views, every number on one process."""
        for name, piece in self.pieces.items():
            first, last = self._saved(name, piece)
            if last > first:
                numbers = flats[piece.flat].detach().narrow(0, piece.offset + first, last - first)
                yield Stretch(name, piece.start + first, numbers)

    def fill(self, read: Read, flats: Sequence[Tensor]) -> None:
        """Write this process's share of every parameter into `flats`."""
        for name, piece in self.pieces.items():
            place = flats[piece.flat].detach().narrow(0, piece.offset, piece.numel)
            place.copy_(read(name, piece.start, piece.start + piece.numel))

    def wanted(self) -> dict[str, tuple[int, int]]:
        """[start, stop) of what `fill` reads."""
        return {name: (piece.start, piece.start + piece.numel) for name, piece in self.pieces.items()}

    def _saved(self, name: str, piece: Piece) -> tuple[int, int]:
        """Of what is kept, the part that this process saves."""
        return 0, piece.numel

    def _global_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        return (shape[0] * self.share.count, *shape[1:]) if _is_expert(parameter) else shape

    def _first(self, parameter: nn.Parameter) -> int:
        """Where this process's own tensor begins in the parameter of all processes."""
        return self.share.place * parameter.numel() if _is_expert(parameter) else 0


class ShardedStates(Partitions):
    """ZeRO-1 and 2: DeepSpeed's own map from parameters to fragments."""

    master_is_module = False

    def __init__(self, module: nn.Module, share: ExpertShare, zero: Any) -> None:
        super().__init__(module, share)
        self.zero = zero
        self.flats = self.keys = zero.single_partition_of_fp32_groups
        group_of = {id(p): index for index, group in enumerate(zero.bit16_groups) for p in group}
        missing = [name for name, p in self.parameters.items() if id(p) not in group_of]
        assert not missing, f"parameters outside the optimizer: {missing}"
        for name, parameter in self.parameters.items():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                start = self._first(parameter) + there.start
                self.pieces[name] = Piece(group_of[id(parameter)], here.start, start, here.numel)

    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """As at the end of every step: this process's share, then everybody's."""
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
    """ZeRO-3: every process has an equal cut of every parameter, the last ones padded."""

    def __init__(self, module: nn.Module, share: ExpertShare, zero: Any) -> None:
        super().__init__(module, share)
        self.zero = zero
        self.flats = self.keys = zero.fp32_partitioned_groups_flat
        self.master_is_module = self.flats[0] is zero.fp16_partitioned_groups_flat[0]
        for name, parameter in self.parameters.items():
            flat, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            start = dist.get_rank() * size
            numel = min(size, math.prod(parameter.ds_shape) - start)  # type: ignore[attr-defined]
            if numel > 0:
                self.pieces[name] = Piece(flat, offset, start, numel)

    @torch.no_grad()
    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """Processes gather a layer's weights when they need them: the own share is all."""
        self.let_go()
        for own, flat in zip(self.zero.fp16_partitioned_groups_flat, flats, strict=True):
            if own is not flat:
                own.data.copy_(flat.data)

    def let_go(self) -> None:
        """DeepSpeed keeps weights that the next call will need again."""
        self.zero.parameter_offload.partition_all_parameters()


class WholeStates(Partitions):
    """ZeRO-0 in fp32: the module's parameters are all there is, and each process saves its share of them."""

    master_is_module = True

    def __init__(self, module: nn.Module, share: ExpertShare) -> None:
        super().__init__(module, share)
        self.keys = list(self.parameters.values())
        self.flats = [parameter.detach().view(-1) for parameter in self.parameters.values()]
        for place, (name, parameter) in enumerate(self.parameters.items()):
            self.pieces[name] = Piece(place, 0, self._first(parameter), parameter.numel())

    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """Nothing to do for the master weights: they are the module's."""
        for own, flat in zip(self.flats, flats, strict=True):
            if own is not flat:
                own.copy_(flat)

    def _saved(self, name: str, piece: Piece) -> tuple[int, int]:
        """Processes that hold the same save equal parts of it."""
        group = groups._get_expert_data_parallel_group(self.share.group_name) if self._is_shared(name) else None
        rank, world = dist.get_rank(group=group), dist.get_world_size(group=group)
        return piece.numel * rank // world, piece.numel * (rank + 1) // world

    def _is_shared(self, name: str) -> bool:
        return _is_expert(self.parameters[name])


def partitions_of(module: nn.Module, share: ExpertShare, zero_stage: int, optimizer: Any) -> Partitions:
    """Of an engine's module; `optimizer` is the engine's."""
    if zero_stage == 0:
        return WholeStates(module, share)
    return (ShardedWeights if zero_stage == 3 else ShardedStates)(module, share, optimizer)


def _is_expert(parameter: nn.Parameter) -> bool:
    """Whether processes hold different experts in it (`ExpertShare.mark`)."""
    return not getattr(parameter, "allreduce", True)
