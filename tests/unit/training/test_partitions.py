"""Names to ZeRO's flat partitions and back."""

from __future__ import annotations

from collections.abc import Callable

import torch

from experiments.config.schema import RunConfig
from experiments.training.engine import Engine

Build = Callable[[RunConfig], Engine]
Tiny = Callable[..., RunConfig]


def test_full_tensors_are_the_weights_of_the_module(build: Build, tiny: Tiny) -> None:
    engine = build(tiny())
    full = dict(engine.partitions.full_tensors())
    assert list(full) == [name for name, _ in engine.model.named_parameters()]
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(full[name], parameter.data), name


def test_what_is_scattered_is_gathered_again(build: Build, tiny: Tiny) -> None:
    engine = build(tiny())
    wanted = {name: torch.randn_like(p) for name, p in engine.partitions.parameters.items()}
    flats = [torch.ones_like(flat) for flat in engine.partitions.flats]
    engine.partitions.scatter(wanted, flats)
    for name, full in engine.partitions.full_tensors(flats):
        assert torch.equal(full, wanted[name]), name


def test_the_module_takes_what_is_copied_to_it_and_the_master_weights_again(build: Build, tiny: Tiny) -> None:
    engine = build(tiny())
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    engine.partitions.copy_to_module([torch.ones_like(flat) for flat in engine.partitions.flats])
    assert all((p == 1).all() for p in engine.model.parameters())
    engine.partitions.refresh_module()
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())
