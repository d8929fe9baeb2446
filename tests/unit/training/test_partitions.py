"""Names to what a process keeps of the fp32 weights, and back, at every ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from experiments.config.schema import RunConfig
from experiments.training.engine import Engine

Build = Callable[[RunConfig], Engine]
Tiny = Callable[..., RunConfig]
stages = pytest.mark.parametrize("stage", [0, 1, 2, 3])


@stages
def test_one_process_keeps_every_number_of_every_parameter(stage: int, build: Build, tiny: Tiny) -> None:
    partitions = build(tiny(f"parallel.zero_stage={stage}")).partitions
    stretches = {stretch.name: stretch for stretch in partitions.stretches(partitions.flats)}
    sizes = {name: math.prod(shape) for name, shape in partitions.shapes.items()}
    assert {name: stretch.numbers.numel() for name, stretch in stretches.items()} == sizes
    assert all(stretch.start == 0 and stretch.numbers.dtype == torch.float32 for stretch in stretches.values())
    assert partitions.wanted() == {name: (0, size) for name, size in sizes.items()}


@stages
def test_what_is_filled_in_is_what_is_saved(stage: int, build: Build, tiny: Tiny) -> None:
    partitions = build(tiny(f"parallel.zero_stage={stage}")).partitions
    wanted = {name: torch.randn(math.prod(shape)) for name, shape in partitions.shapes.items()}
    flats = [torch.ones_like(flat) for flat in partitions.flats]
    partitions.fill(lambda name, start, stop: wanted[name][start:stop], flats)
    assert all(torch.equal(stretch.numbers.cpu(), wanted[stretch.name]) for stretch in partitions.stretches(flats))


@pytest.mark.parametrize("stage", [1, 2])
def test_the_module_takes_what_is_copied_to_it_and_the_master_weights_again(
    stage: int, build: Build, tiny: Tiny
) -> None:
    engine = build(tiny(f"parallel.zero_stage={stage}"))
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    engine.partitions.copy_to_module([torch.ones_like(flat) for flat in engine.partitions.flats])
    assert all((p == 1).all() for p in engine.model.parameters())
    engine.partitions.refresh_module()
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())


@stages
def test_shapes_are_those_of_the_model(stage: int, build: Build, tiny: Tiny) -> None:
    plain = {name: tuple(p.shape) for name, p in build(tiny()).model.named_parameters()}
    assert build(tiny(f"parallel.zero_stage={stage}")).partitions.shapes == plain
