"""Parameter groups by factor: what each gets, that the step is right, and that the base width is the standard run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from experiments.config.parametrization import rate_factor
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.config.tensors import optimizer_groups
from experiments.models.dit import DiT
from experiments.training.engine import Engine
from experiments.training.optimizer import build_optimizer

Tiny = Callable[..., RunConfig]
Build = Callable[[RunConfig], Engine]
Advance = Callable[..., list[float]]
MUP = ("optim.parametrization=mup", "model.base_width=8")


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_a_group_for_each_factor_holds_its_constants(router: str, optimizer: str, tiny: Tiny) -> None:
    config = tiny(*MUP, f"routing={router}", f"optim={optimizer}", "optim.weight_decay=0.1", "optim.epsilon=1e-6")
    model = DiT(config)
    first, second = build_optimizer(config, model).param_groups
    assert (first["lr"], first["eps"], first["weight_decay"]) == (2e-3, 1e-6, 0.1)
    assert (second["lr"], second["eps"], second["weight_decay"]) == pytest.approx((5e-4, 2.5e-7, 0.4))
    slow = {id(parameter) for parameter in second["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in slow} == {
        name for name, _ in model.named_parameters() if rate_factor(config, name) == 0.25
    }
    assert len(first["params"]) + len(second["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_engine_keeps_each_groups_factor(zero_stage: int, tiny: Tiny, build: Build, advance: Advance) -> None:
    """After the first step of AdamW every weight with a gradient has moved by the rate times its factor."""
    config = tiny(*MUP, f"parallel.zero_stage={zero_stage}", "optim.warmup_images=0", "optim.epsilon=1e-20",
                  "optim.clip_norm=1e20")  # fmt: skip
    engine = build(config)
    partitions = engine.partitions
    before = {stretch.name: stretch.numbers.clone() for stretch in partitions.stretches(partitions.flats)}
    advance(engine, config, start=0, num_steps=1)
    moved = set()
    for stretch in partitions.stretches(partitions.flats):
        largest = float((stretch.numbers - before[stretch.name]).abs().max())
        if largest:
            moved.add(stretch.name)
            assert largest == pytest.approx(2e-3 * rate_factor(config, stretch.name), rel=1e-3), stretch.name
    assert "head.weight" in moved
    assert "head.bias" in moved


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_losses_do_not_depend_on_the_zero_stage(zero_stage: int, tiny: Tiny, build: Build, advance: Advance) -> None:
    """At a width other than the base, with weight decay, where they differ from the standard parametrization."""
    config = tiny(*MUP, "optim.weight_decay=0.1", "optim.learning_rate=1e-2")
    expected = advance(build(config), config, start=0, num_steps=4)
    staged = tiny(*MUP, "optim.weight_decay=0.1", "optim.learning_rate=1e-2", f"parallel.zero_stage={zero_stage}")
    assert advance(build(staged), staged, start=0, num_steps=4) == pytest.approx(expected, rel=1e-6)
    standard = tiny("optim.weight_decay=0.1", "optim.learning_rate=1e-2")
    assert advance(build(standard), standard, start=0, num_steps=4) != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("router", ROUTERS)
def test_at_the_base_width_losses_are_equal_to_the_bit(router: str, tiny: Tiny, build: Build, advance: Advance) -> None:
    settings = [f"routing={router}", "optim.weight_decay=0.1", "optim.learning_rate=1e-2"]
    plain, base = tiny(*settings), tiny(*settings, "optim.parametrization=mup", "model.base_width=32")
    assert advance(build(plain), plain, start=0, num_steps=4) == advance(build(base), base, start=0, num_steps=4)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_arithmetic_of_groups_is_that_of_the_engine(stage: int, tiny: Tiny, build: Build) -> None:
    config = tiny(*MUP, f"parallel.zero_stage={stage}")
    flats = build(config).partitions.flats
    assert [group.partition_elements for group in optimizer_groups(config)] == [flat.numel() for flat in flats]
    assert len(flats) == 2


def test_an_optimizer_without_a_base_width_has_one_group(tiny: Tiny) -> None:
    config = tiny()
    (group,) = build_optimizer(config, DiT(config)).param_groups
    assert group["lr"] == 2e-3
    assert isinstance(build_optimizer(tiny("optim=rmsprop"), DiT(config)), torch.optim.RMSprop)
