"""Decisions that the processes of a run take together between steps. All are collective, and free for one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch

from experiments.distributed.deepspeed_library import dist

Kind = TypeVar("Kind")


def any_process(flags: Sequence[bool], world: int, device: torch.device) -> list[bool]:
    """Returns the flags, each of them set where any process has set it; the result is equal on all processes."""
    if world == 1:
        return list(flags)
    raised = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def everyone(mine: Kind, world: int) -> list[Kind]:
    """Returns the values `mine` of all processes, by rank."""
    found: list[Kind] = [mine] * world
    if world > 1:
        dist.all_gather_object(found, mine)
    return found


def first_trouble(mine: Kind | None, world: int) -> Kind | None:
    """Returns the trouble of the lowest rank that has any, or None; the result is equal on all processes."""
    return next((trouble for trouble in everyone(mine, world) if trouble is not None), None)


def of_the_first(find: Callable[[], Kind], rank: int, world: int) -> Kind:
    """Returns on every process what `find` returns on rank 0, where alone it is called.

    On a shared disk the others may not see yet what rank 0 has just written or renamed.
    """
    told = [find()] if rank == 0 else [cast("Kind", None)]
    if world > 1:
        dist.broadcast_object_list(told, src=0)
    return told[0]
