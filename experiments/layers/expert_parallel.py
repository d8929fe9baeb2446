"""Expert parallelism: the experts of a layer spread over processes, with DeepSpeed's groups and all-to-all.

Each of R processes of an expert-parallel group holds E / R experts of every routed layer and routes its own images. One
all-to-all sends the slots to the processes that hold their experts, a second sends the results back (GShard, arXiv
2006.16668; DeepSpeed-MoE, arXiv 2201.05596). Without a capacity the processes first exchange their numbers of slots, so
that no padding is sent or computed. Only `StackedExperts` uses this: routers and blocks do not depend on the layout.

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

from experiments.distributed.deepspeed_library import AllToAll, MoE, dist, groups
from experiments.layers.segments import slot_counts

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""The experts' computation: takes slots [M, D] sorted by expert, and the slots of each expert where loads differ."""


@dataclass(frozen=True)
class ExpertShare:
    """The experts that a process holds: the `place`-th (from 0) of `count` equal ranges of experts."""

    place: int = 0
    count: int = 1

    def of(self, num_experts: int) -> range:
        """Returns the global numbers of the experts that this process holds."""
        assert num_experts % self.count == 0, f"{num_experts} experts do not divide into {self.count} shares"
        size = num_experts // self.count
        return range(self.place * size, (self.place + 1) * size)

    @property
    def group_name(self) -> str:
        """Returns the name by which DeepSpeed knows the expert-parallel group."""
        return f"ep_size_{self.count}"

    def mark(self, parameter: nn.Parameter) -> None:
        """Tells DeepSpeed to reduce the gradient of `parameter` only over the processes that hold the same experts."""
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = self.group_name  # type: ignore[attr-defined]


ALL_EXPERTS = ExpertShare()


class ExpertExchange(MoE):  # type: ignore[misc]
    """Sends slots to the processes that hold their experts and the results back. It has no parameters.

    It derives from DeepSpeed's `MoE` but uses none of it: the engine looks for modules of that class to learn that
    there are expert parameters, and calls `set_deepspeed_parallelism` on them once the process group exists.
    """

    def __init__(self, num_experts: int, share: ExpertShare) -> None:
        nn.Module.__init__(self)
        self.num_experts, self.share = num_experts, share
        self.group: dist.ProcessGroup | None = None

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Creates the expert-parallel groups unless another layer has; `deepspeed.initialize` calls this."""
        if self.share.group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.share.count, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self.group = groups._get_expert_parallel_group(self.share.group_name)

    def forward(self, x_MD: Tensor, slots_E: Tensor | None, compute: Compute) -> Tensor:
        """Runs `compute` over the slots of all processes of the group, where the experts are held. Collective.

        Maps [M, D] to [M, D]; `slots_E` is as in `StackedExperts.forward`.
        """
        if slots_E is not None:
            return self._uneven(x_MD, slots_E, compute)
        return self._even(x_MD.view(self.num_experts, -1, x_MD.shape[1]), compute).flatten(0, 1)

    def _even(self, x_EPD: Tensor, compute: Compute) -> Tensor:
        """Exchanges slots of which all experts of a process have equally many.

        In training all processes have the same number too, as the capacity fixes it. Otherwise (the last batch of a
        validation) the group agrees on the largest number, and the other processes pad theirs with zeros.
        """
        num_experts, num_slots, width = x_EPD.shape
        # DeepSpeed's all-to-all sends the r-th part of the first axis, the experts of process r, to process r. What
        # arrives is ordered by sender and then by expert. The transpose brings together all slots of one expert.
        most = num_slots if self.training else self._most(num_slots, x_EPD.device)
        sent_EPD = F.pad(x_EPD, (0, 0, 0, most - num_slots)) if most > num_slots else x_EPD
        count, held = self.share.count, num_experts // self.share.count
        received = AllToAll.apply(self.group, sent_EPD).view(count, held, most, width)
        y = compute(received.transpose(0, 1).reshape(held * count * most, width), None)
        back = y.view(held, count, most, width).transpose(0, 1)
        returned_EPD: Tensor = AllToAll.apply(self.group, back).view(num_experts, most, width)
        return returned_EPD[:, :num_slots]

    def _most(self, num_slots: int, device: torch.device) -> int:
        """Returns the largest number of slots of an expert on any process of the group. Collective."""
        most = torch.tensor([num_slots], device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.group)
        return int(most.item())

    def _uneven(self, x_MD: Tensor, slots_E: Tensor, compute: Compute) -> Tensor:
        """Exchanges slots of which experts have different numbers.

        Slots arrive sorted by sender and then by expert. They are regrouped by expert for the computation, and back
        into the order of their arrival before the results are returned.
        """
        held, total = self.num_experts // self.share.count, len(x_MD)
        # A receiver must know its row counts before the all-to-all of rows, so the counts are exchanged first.
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
    """An all-to-all with `sent[r]` rows to and `received[r]` rows from process r; DeepSpeed's sends equal shares."""

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
    """Reorders runs of `counts` rows in groups of `size` runs: the first run of each group comes first, and so on."""
    stretches = torch.split(x_MD, list(counts))
    return torch.cat([stretch for place in range(size) for stretch in stretches[place::size]])
