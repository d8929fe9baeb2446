"""What the processes of a run decide together, between two steps. All of it is collective; with one process, free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from experiments.routing.deepspeed_library import dist

Kind = TypeVar("Kind")


def any_process(flags: Sequence[bool], world: int, device: torch.device) -> list[bool]:
    """Each flag, set where any process has set it; the same answer on all of them."""
    if world == 1:
        return list(flags)
    raised = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def everyone(mine: Kind, world: int) -> list[Kind]:
    """What each process has, by rank."""
    found: list[Kind] = [mine] * world
    if world > 1:
        dist.all_gather_object(found, mine)
    return found


def first_trouble(mine: Kind | None, world: int) -> Kind | None:
    """Of the lowest rank that has any."""
    return next((trouble for trouble in everyone(mine, world) if trouble is not None), None)


def of_the_first(paths: Sequence[Path], world: int) -> list[Path]:
    """What rank 0 says: on a shared disk others may not see yet what it has just renamed."""
    told = [list(paths)]
    if world > 1:
        dist.broadcast_object_list(told, src=0)
    return told[0]
