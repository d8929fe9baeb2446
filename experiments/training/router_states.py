"""Keeps the state of a model's routers during training: once per optimizer step, the same on every process.

The forward passes of a step show what the state learns (`Assignment.observed`), whether activation checkpointing
computes them again or not. After the step the mean over micro batches and processes updates each router. Checkpoints
hold the numbers in `state.json`, since there are few and JSON keeps every bit of them; any layout reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.distributed.deepspeed_library import dist
from experiments.errors import CheckpointError
from experiments.routing.contract import FeedForwardOutput
from experiments.routing.router import Router
from experiments.routing.state import RouterState

Place = tuple[int, bool]
"""The number of a router's block, and whether it routes text tokens."""
KEY = "router_state"
"""The entry of a checkpoint's state that holds the numbers, by the names of the module's buffers."""


class RouterStates:
    """The routers of a model, by block, and what the present step has shown them."""

    def __init__(self, model: nn.Module) -> None:
        blocks = model.get_submodule("blocks")
        assert isinstance(blocks, nn.ModuleList)
        self._routers: dict[Place, Router] = {
            (place, name.startswith("text_")): module
            for place, block in enumerate(blocks)
            for name, module in block.named_modules()
            if isinstance(module, Router)
        }
        self._observed: dict[Place, list[Tensor]] = {}

    def begin(self, images_seen: int) -> None:
        """Tells the routers how far training is, before a step."""
        self._observed = {}
        for router in self._routers.values():
            router.images_seen = images_seen

    def observe(self, answers: Sequence[FeedForwardOutput]) -> None:
        """Takes what one micro batch has shown; `answers` has one output per block."""
        for place in self._routers:
            layer, is_text = place
            assignment = answers[layer].text_assignment if is_text else answers[layer].assignment
            if assignment is not None and assignment.observed is not None:
                self._observed.setdefault(place, []).append(assignment.observed)

    def step(self, world: int) -> None:
        """Updates the states after the optimizer step. Collective where a router has a state."""
        if not self._observed:
            return
        means = {place: torch.stack(observed).mean(dim=0) for place, observed in self._observed.items()}
        if world > 1:
            joined = torch.cat([mean.flatten() for mean in means.values()])
            dist.all_reduce(joined)
            parts = torch.split(joined / world, [mean.numel() for mean in means.values()])
            means = {place: part.view_as(means[place]) for place, part in zip(means, parts, strict=True)}
        for place, mean in means.items():
            state = self._routers[place].state
            assert state is not None, "only a router with a state observes anything"
            state.update(mean)
        self._observed = {}


def router_state(model: nn.Module) -> dict[str, Any]:
    """Returns the numbers of all router states of a model, by the names of their buffers; empty without any."""
    return {name: buffer.tolist() for name, buffer in _buffers(model).items()}


def load_router_state(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Restores what `router_state` returned, from the state of the checkpoint or export at `path`.

    Raises `CheckpointError` where it is missing, of another router or no numbers.
    """
    stored, buffers = state.get(KEY, {}), _buffers(model)
    if set(stored) != set(buffers):
        named = ", ".join(sorted(set(stored) ^ set(buffers))[:3])
        raise CheckpointError(
            f"{path} holds the router state of another router: {named} is in one of them alone.",
            "Use the routing settings of the run that wrote it, or another --run-dir.",
        )
    for name, buffer in buffers.items():
        try:
            values = torch.tensor(stored[name], dtype=buffer.dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{path} holds no numbers in {KEY}.{name}.", "Use another checkpoint.") from error
        if not buffer.is_floating_point() and (type(stored[name]) is not int or stored[name] < 0):
            raise CheckpointError(f"{path} holds no count in {KEY}.{name}.", "Use another checkpoint.")
        if values.shape != buffer.shape or not bool(values.isfinite().all()):
            raise CheckpointError(
                f"{path} holds {KEY}.{name} of shape {list(values.shape)} or with infinite numbers, "
                f"{list(buffer.shape)} is expected.",
                "Use the routing settings of the run that wrote it, or another --run-dir.",
            )
        buffer.copy_(values)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}": buffer
        for prefix, module in model.named_modules()
        if isinstance(module, RouterState)
        for name, buffer in module.named_buffers(recurse=False)
    }
