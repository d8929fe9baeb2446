"""Expert parallelism: the experts of a layer spread over processes, by DeepSpeed's groups and all-to-all.

Each of R processes of an expert-parallel group holds E / R experts of every routed layer and routes its own images. The
slots travel to the processes that hold their experts, and the results travel back (GShard, arXiv 2006.16668;
DeepSpeed-MoE, arXiv 2201.05596). Without a capacity their numbers travel first, and nothing else is sent or computed.
Nothing else of a layer knows of it: `StackedExperts` calls what is here around its two products.

Legend: E experts, R processes of an expert-parallel group, P slots of an expert on one process, M slots of all experts
on one process, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from experiments.routing.deepspeed_library import AllToAll, MoE, dist, groups
from experiments.routing.segments import slot_counts

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""Slots [M, D] sorted by expert, and those of each expert where they differ."""


@dataclass(frozen=True)
class ExpertShare:
    """Which experts a process holds: the `place`-th of `count` equal stretches."""

    place: int = 0
    count: int = 1

    def of(self, num_experts: int) -> range:
        """Global numbers of the experts."""
        assert num_experts % self.count == 0, f"{num_experts} experts do not divide into {self.count} shares"
        size = num_experts // self.count
        return range(self.place * size, (self.place + 1) * size)

    @property
    def group_name(self) -> str:
        """What DeepSpeed calls the group."""
        return f"ep_size_{self.count}"

    def mark(self, parameter: nn.Parameter) -> None:
        """Tell DeepSpeed that gradients are summed over the processes that hold the same experts only."""
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = self.group_name  # type: ignore[attr-defined]


ALL_EXPERTS = ExpertShare()


class ExpertExchange(MoE):  # type: ignore[misc]
    """Slots to the processes that hold their experts, and back. No parameters.

    It is a DeepSpeed `MoE` by name only: by that the engine knows that there are expert parameters, and lets it make
    the groups once the process group exists.
    """

    def __init__(self, num_experts: int, share: ExpertShare) -> None:
        nn.Module.__init__(self)
        self.num_experts, self.share = num_experts, share
        self.group: dist.ProcessGroup | None = None

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Called by `deepspeed.initialize`."""
        if self.share.group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.share.count, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self.group = groups._get_expert_parallel_group(self.share.group_name)

    def forward(self, x_MD: Tensor, slots_E: Tensor | None, compute: Compute) -> Tensor:
        """`compute` over the slots of all processes of the group, by those that hold the experts. Collective.

        [M, D] to the same. `slots_E`: as in `StackedExperts.forward`.
        """
        if slots_E is not None:
            return self._uneven(x_MD, slots_E, compute)
        return self._even(x_MD.view(self.num_experts, -1, x_MD.shape[1]), compute).flatten(0, 1)

    def _even(self, x_EPD: Tensor, compute: Compute) -> Tensor:
        """In training every process has as many slots, fixed by the capacity.

        Otherwise (a last batch of validation) the group agrees on the most, and the others send empty ones along.
        """
        num_experts, num_slots, width = x_EPD.shape
        most = num_slots if self.training else self._most(num_slots, x_EPD.device)
        sent_EPD = F.pad(x_EPD, (0, 0, 0, most - num_slots)) if most > num_slots else x_EPD
        count, held = self.share.count, num_experts // self.share.count
        received = AllToAll.apply(self.group, sent_EPD).view(count, held, most, width)
        y = compute(received.transpose(0, 1).reshape(held * count * most, width), None)
        back = y.view(held, count, most, width).transpose(0, 1)
        returned_EPD: Tensor = AllToAll.apply(self.group, back).view(num_experts, most, width)
        return returned_EPD[:, :num_slots]

    def _most(self, num_slots: int, device: torch.device) -> int:
        """The largest number of slots of an expert on any process of the group."""
        most = torch.tensor([num_slots], device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.group)
        return int(most.item())

    def _uneven(self, x_MD: Tensor, slots_E: Tensor, compute: Compute) -> Tensor:
        """What arrives lies by sender, and inside by expert; it is computed by expert, and sent back as it came."""
        held, total = self.num_experts // self.share.count, len(x_MD)
        arriving_E = torch.empty_like(slots_E)
        dist.all_to_all_single(arriving_E, slots_E, group=self.group)
        sent, arriving = slot_counts(slots_E, total), slot_counts(arriving_E, total)
        out, back = (
            [sum(each[first : first + held]) for first in range(0, len(each), held)] for each in (sent, arriving)
        )
        received_MD: Tensor = _UnevenAllToAll.apply(x_MD, self.group, out, back)  # type: ignore[no-untyped-call]
        y_MD = compute(_regrouped(received_MD, arriving, held), arriving_E.view(-1, held).sum(dim=0))
        by_expert = [count for expert in range(held) for count in arriving[expert::held]]
        y_MD = _regrouped(y_MD, by_expert, self.share.count)
        returned_MD: Tensor = _UnevenAllToAll.apply(y_MD, self.group, back, out)  # type: ignore[no-untyped-call]
        return returned_MD


class _UnevenAllToAll(torch.autograd.Function):
    """DeepSpeed's, which sends equal shares, with `sent` rows to and `received` rows from each process."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_MD: Tensor, group: object, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        ctx.group, ctx.sent, ctx.received = group, sent, received  # type: ignore[attr-defined]
        out_MD = x_MD.new_empty(sum(received), x_MD.shape[1])
        dist.all_to_all_single(out_MD, x_MD.contiguous(), list(received), list(sent), group=group)
        return out_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        back: Tensor = _UnevenAllToAll.apply(gradients[0], ctx.group, ctx.received, ctx.sent)  # type: ignore[no-untyped-call]
        return back, None, None, None


def _regrouped(x_MD: Tensor, counts: Sequence[int], size: int) -> Tensor:
    """Rows in stretches of `counts`, which come in groups of `size`: first the first of each group, and so on."""
    stretches = torch.split(x_MD, list(counts))
    return torch.cat([stretch for place in range(size) for stretch in stretches[place::size]])
