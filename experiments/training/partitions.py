"""Between named parameters and ZeRO's flat fp32 partitions.

ZeRO-1 and 2 keep one flat fp32 tensor per parameter group on each process: its share of the master weights. Optimizer
state and the moving average have the same layout. `full_tensors` turns any tensors of this layout into full tensors by
parameter name, `scatter` is the inverse; both go through DeepSpeed's own map from parameters to fragments. A checkpoint
written from names knows nothing of the layout it came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from experiments.routing.deepspeed_library import dist


class FlatPartitions:
    """The flat fp32 partitions of a ZeRO-1 or 2 optimizer over a module."""

    def __init__(self, module: nn.Module, zero_optimizer: object) -> None:
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        self.groups: list[list[nn.Parameter]] = zero_optimizer.bit16_groups  # type: ignore[attr-defined]
        self.flats: list[Tensor] = zero_optimizer.single_partition_of_fp32_groups  # type: ignore[attr-defined]
        self._group_of = {id(p): index for index, group in enumerate(self.groups) for p in group}
        missing = [name for name, p in self.parameters.items() if id(p) not in self._group_of]
        assert not missing, f"parameters outside the optimizer: {missing}"

    def full_tensors(self, flats: Sequence[Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, full fp32 tensor) from tensors laid out like the master weights (which are the default).

        Collective: every process of the data-parallel group takes every one. They come one by one, so that a device
        need not hold them all.
        """
        flats = self.flats if flats is None else flats
        for name, parameter in self.parameters.items():
            yield name, self._gather_one(parameter, flats[self._group_of[id(parameter)]])

    def scatter(self, full: Mapping[str, Tensor], flats: Sequence[Tensor] | None = None) -> None:
        """Write this process's share of each full tensor into `flats` (default: the master weights)."""
        flats = self.flats if flats is None else flats
        for name, parameter in self.parameters.items():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                part = _fragment(full[name].reshape(-1), mapping.lp_fragment_address)
                _fragment(flats[self._group_of[id(parameter)]], mapping.hp_fragment_address).copy_(part)

    def refresh_module(self) -> None:
        """Copy the master weights into the module's own (possibly bf16) parameters. Collective."""
        self.copy_to_module(self.flats)

    def copy_to_module(self, flats: Sequence[Tensor]) -> None:
        """Copy tensors laid out like the master weights into the module's own parameters. Collective."""
        for name, full in self.full_tensors(flats):
            self.parameters[name].data.copy_(full)

    def _gather_one(self, parameter: nn.Parameter, flat: Tensor) -> Tensor:
        full = torch.zeros(parameter.numel(), dtype=torch.float32, device=flat.device)
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:
            _fragment(full, mapping.lp_fragment_address).copy_(_fragment(flat, mapping.hp_fragment_address))
        group = parameter._dp_group  # type: ignore[attr-defined]
        if dist.get_world_size(group) > 1:
            dist.all_reduce(full, group=group)
        return full.view(parameter.shape)


def _fragment(flat: Tensor, address: object) -> Tensor:
    return flat.detach().narrow(0, address.start, address.numel)  # type: ignore[attr-defined]
