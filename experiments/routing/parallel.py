"""Expert parallelism: the experts of a layer spread over processes, by DeepSpeed's groups and all-to-all.

Each of R processes of an expert-parallel group holds E / R experts of every routed layer and routes its own images. The
filled slots travel to the processes that hold their experts, and the results travel back (GShard, arXiv 2006.16668;
DeepSpeed-MoE, arXiv 2201.05596). Nothing else of a layer knows of it: `StackedExperts` calls what is here around its
two products.

Legend: E experts, R processes of an expert-parallel group, P slots of an expert on one process, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.routing.deepspeed_library import AllToAll, MoE, dist, groups

Compute = Callable[[Tensor], Tensor]


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

    def __init__(self, num_experts: int, share: ExpertShare, fixed_slots: bool) -> None:
        nn.Module.__init__(self)
        self.num_experts, self.share = num_experts, share
        self.fixed_slots = fixed_slots
        self.group: dist.ProcessGroup | None = None

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Called by `deepspeed.initialize`."""
        if self.share.group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.share.count, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self.group = groups._get_expert_parallel_group(self.share.group_name)

    def forward(self, x_EPD: Tensor, compute: Compute) -> Tensor:
        """`compute` over [E / R, R P, D] on the processes of the group: [E, P, D] to the same. Collective.

        In training every process has as many slots, fixed by the capacity. Otherwise (a last batch of validation,
        routing without a limit) the group agrees on the most, and the others send empty ones along.
        """
        num_experts, num_slots, width = x_EPD.shape
        most = num_slots if self.fixed_slots and self.training else self._most(num_slots, x_EPD.device)
        sent_EPD = F.pad(x_EPD, (0, 0, 0, most - num_slots)) if most > num_slots else x_EPD
        count, held = self.share.count, num_experts // self.share.count
        received = AllToAll.apply(self.group, sent_EPD).view(count, held, most, width)
        y = compute(received.transpose(0, 1).reshape(held, count * most, width))
        back = y.view(held, count, most, width).transpose(0, 1)
        returned_EPD: Tensor = AllToAll.apply(self.group, back).view(num_experts, most, width)
        return returned_EPD[:, :num_slots]

    def _most(self, num_slots: int, device: torch.device) -> int:
        """The largest number of slots of an expert on any process of the group."""
        most = torch.tensor([num_slots], device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.group)
        return int(most.item())
