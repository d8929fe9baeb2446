"""One of several processes whose tokens compete together. Not a test by itself: see `test_scope.py`.

Its argument is the file that rank 0 writes what all processes have found to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.distributed.agreement import everyone
from experiments.distributed.deepspeed_library import dist
from experiments.layers.small_layers import small_layer
from experiments.routing.contract import RoutingContext
from experiments.routing.scope import among_the_largest, mean_over_processes
from experiments.training.engine import process_group

COUNTS = (1, 3, 7, 12)
ROUTERS = {
    "expert_race": {"name": "expert_race", "num_experts": 4, "capacity_factor": 1.0},
    "expert_choice": {"name": "expert_choice", "num_experts": 4, "capacity_factor": 1.0, "group_images": "all"},
}
LOSSES: dict[str, dict[str, Any]] = {
    "balance": {"balance_scope": "all"},
    "balance of images with a caption": {"balance_scope": "all", "unconditional_expert": True},
    "balance and z-loss of images with a caption": {
        "group_images": 1, "z_loss_weight": 1.0, "unconditional_expert": True,
    },
}  # fmt: skip
"""Losses whose gradient does not depend on the number of processes. The first of four images has no caption."""


def entries() -> dict[str, Tensor]:
    """12 entries of three rows, of which every process takes a part: different ones, and few different ones."""
    generator = torch.Generator().manual_seed(0)
    return {
        "different": torch.randn(3, 12, generator=generator),
        "ties": torch.randint(0, 3, (3, 12), generator=generator).float(),
        "equal": torch.zeros(3, 12),
    }


def images() -> Tensor:
    return torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(1))


def found(rank: int, world: int) -> dict[str, Any]:
    """What this process chooses from its part."""
    results: dict[str, Any] = {}
    for name, score_RN in entries().items():
        for count in COUNTS:
            chosen_RN, least_R = among_the_largest(score_RN.chunk(world, dim=1)[rank], count)
            results[f"{name} {count}"] = (chosen_RN.tolist(), least_R.tolist())
    x_BTD = images().chunk(world)[rank]
    for name, settings in ROUTERS.items():
        torch.manual_seed(2)
        assignment = small_layer(**settings)(x_BTD).assignment
        observed = None if assignment.observed is None else mean_over_processes(assignment.observed).tolist()
        results[name] = (assignment.chosen_NE.tolist(), observed)
    dropped_B = (torch.arange(4) == 0).chunk(world)[rank]
    context = RoutingContext.of_a_layer_alone(x_BTD)
    for name, settings in LOSSES.items():
        without_caption = dropped_B if settings.get("unconditional_expert") else torch.zeros_like(dropped_B)
        results[name] = loss_gradient(x_BTD, context._replace(dropped_B=without_caption), settings)
    return results


def loss_gradient(x_BTD: Tensor, context: RoutingContext, settings: dict[str, Any]) -> list[list[float]]:
    """The mean over processes of the gradient of the auxiliary loss of a router with these settings."""
    torch.manual_seed(2)
    layer = small_layer(name="shared_expert", num_experts=4, balance_loss_weight=1.0, **settings)
    (gradient,) = torch.autograd.grad(layer(x_BTD, context).auxiliary_loss, [layer.router.weight_DE])
    mean: list[list[float]] = mean_over_processes(gradient).tolist()
    return mean


def main() -> None:
    """Rank 0 writes the answers of all processes, in the order of their ranks."""
    path = Path(sys.argv[1])
    with process_group(path.with_suffix(".log")):
        rank, world = dist.get_rank(), dist.get_world_size()
        answers = everyone(found(rank, world), world)
        if rank == 0:
            path.write_text(json.dumps(answers))
