"""Competition over the tokens of all processes: each process learns which of its own entries are among the largest.

Every process sends its own `count` largest entries, which hold all that can be among the `count` largest of all. The
result is what one process with all tokens would choose, with ties broken by rank and then by position. Collective.

Legend: R rows that compete by themselves (an expert each, or a single one of all pairs), N entries of this process, P
processes, C entries that are chosen in a row over all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from experiments.distributed.deepspeed_library import dist


def num_processes() -> int:
    """Returns the number of processes that train together, which is 1 before there is a process group."""
    return int(dist.get_world_size()) if dist.is_initialized() else 1


def among_the_largest(score_RN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns which entries are among the `count` largest of their row over all processes, bool [R, N].

    The second result is the smallest chosen entry of each row, [R]: the threshold that a later decision can use.
    """
    sent = min(count, score_RN.shape[1])
    # `topk` would choose among equal scores as it likes, and otherwise with other numbers of entries.
    value_RN, place_RN = score_RN.detach().sort(dim=1, descending=True, stable=True)
    value_RC, place_RC = value_RN[:, :sent], place_RN[:, :sent]
    processes = num_processes()
    if processes == 1:
        return torch.zeros_like(score_RN, dtype=torch.bool).scatter_(1, place_RC, True), value_RC[:, -1]
    gathered = [torch.empty_like(value_RC) for _ in range(processes)]
    dist.all_gather(gathered, value_RC.contiguous())
    value_RM = torch.cat(gathered, dim=1)
    # The sort is stable and processes stand side by side, so that ties go to the process of the smaller rank.
    sorted_RM, order_RM = value_RM.sort(dim=1, descending=True, stable=True)
    chosen_RM = torch.zeros_like(value_RM, dtype=torch.bool).scatter_(1, order_RM[:, :count], True)
    first = int(dist.get_rank()) * sent
    mine_RC = chosen_RM[:, first : first + sent]
    return torch.zeros_like(score_RN, dtype=torch.bool).scatter_(1, place_RC, mine_RC), sorted_RM[:, :count][:, -1]


def mean_over_processes(values: Tensor) -> Tensor:
    """Returns the mean of `values`, without a gradient, over all processes. Collective."""
    values = values.detach()
    if num_processes() == 1 or isinstance(values, FakeTensor):
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / num_processes()
