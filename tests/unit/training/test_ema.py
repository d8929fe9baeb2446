"""The moving averages against their closed forms."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from experiments.config.ema_widths import POWER_WIDTHS
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.training.engine import Engine, build_engine
from experiments.training.objective import forward_loss, to_device
from experiments.training.power_profiles import exponent_of

Build = Callable[[RunConfig], Engine]
Tiny = Callable[..., RunConfig]
Advance = Callable[..., list[float]]


def test_after_a_halflife_of_images_half_of_the_old_average_is_left(build: Build, tiny: Tiny) -> None:
    engine = build(tiny("train.ema_halflife_images=160"))
    flat, average = engine.partitions.flats[0], engine.ema.flats[0]
    average.fill_(1.0)
    with torch.no_grad():
        flat.zero_()
    for step in range(20):
        engine.ema.update(images_seen=100_000 + 8 * step, batch_images=8)
    torch.testing.assert_close(average, torch.full_like(average, 0.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("images_seen", [8, 1000, 39_999, 40_001, 10**6])
def test_the_halflife_is_at_most_a_twentieth_of_the_images_seen(build: Build, tiny: Tiny, images_seen: int) -> None:
    engine = build(tiny("train.ema_halflife_images=2000"))
    engine.ema.flats[0].fill_(1.0)
    with torch.no_grad():
        engine.partitions.flats[0].zero_()
    engine.ema.update(images_seen, batch_images=8)
    left = 0.5 ** (8 / min(2000, images_seen / 20))
    torch.testing.assert_close(engine.ema.flats[0][:1].cpu(), torch.tensor([left]), atol=1e-6, rtol=1e-5)


def test_in_bf16_the_average_is_fp32_and_still_moves(one_process: None, tiny: Tiny) -> None:
    """A change of 1e-4 of the weight is below what bf16 resolves."""
    engine = build_engine(tiny(), "bf16")
    assert all(p.dtype == torch.bfloat16 for p in engine.model.parameters())
    average = engine.ema.flats[0].fill_(1.0)
    with torch.no_grad():
        engine.partitions.flats[0].fill_(0.9)
    engine.ema.update(images_seen=10**6, batch_images=3)
    assert average.dtype == torch.float32
    expected = 0.9 + 0.1 * 0.5 ** (3 / 2000)
    torch.testing.assert_close(average, torch.full_like(average, expected), atol=1e-6, rtol=0)
    assert expected > 1 - 2**-9


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_the_module_holds_the_average_inside_only(zero_stage: int, build: Build, tiny: Tiny) -> None:
    engine = build(tiny(f"parallel.zero_stage={zero_stage}"))
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    for flat in engine.ema.flats:
        flat.fill_(2.0)
    with engine.ema.applied():
        assert all((p == 2).all() for p in engine.model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())
    assert all((flat == 2).all() for flat in engine.ema.flats)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_model_answers_with_the_average_inside_only(zero_stage: int, build: Build, tiny: Tiny) -> None:
    """ZeRO-3 keeps weights that it expects to need again."""
    config = tiny(f"parallel.zero_stage={zero_stage}")
    engine = build(config)
    batch = to_device(TrainStream(config).batch(0), engine.device)

    def loss() -> float:
        with torch.no_grad():
            return float(forward_loss(engine.model.eval(), batch, config)[0].mean())

    for flat in engine.ema.flats:
        flat.normal_(std=0.1, generator=torch.Generator(flat.device).manual_seed(0))
    before = loss()
    with engine.ema.applied():
        inside = loss()
    assert loss() == before != inside
    with engine.ema.applied():
        assert loss() == inside


def shares_of_steps(width: float, ends: list[int]) -> list[float]:
    """The integral of the profile over each step, from the images at the end of each."""
    power = exponent_of(width) + 1
    return [(end**power - start**power) / ends[-1] ** power for start, end in pairwise([0, *ends])]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_power_average_is_the_weighted_mean_of_all_weights(
    zero_stage: int, build: Build, tiny: Tiny, advance: Advance
) -> None:
    config = tiny("train.ema=power", f"parallel.zero_stage={zero_stage}", "optim.learning_rate=1e-2")
    engine = build(config)
    assert engine.ema.widths == POWER_WIDTHS == (0.05, 0.10)
    past: list[list[torch.Tensor]] = []
    for number in range(6):
        advance(engine, config, start=number, num_steps=1)
        past.append([flat.detach().double() for flat in engine.partitions.flats])
    for width, flats in zip(engine.ema.widths, engine.ema.averages, strict=True):
        shares = shares_of_steps(width, [8, 16, 24, 32, 40, 48])
        assert sum(shares) == pytest.approx(1)  # the initial weights have no part in it
        for place, average in enumerate(flats):
            exact = sum(share * weights[place] for share, weights in zip(shares, past, strict=True))
            torch.testing.assert_close(average.double(), exact, atol=1e-7, rtol=1e-5)
    narrow, wide = engine.ema.averages
    assert not torch.equal(narrow[0], wide[0])


def test_the_kind_of_average_changes_no_loss_and_no_weight(build: Build, tiny: Tiny, advance: Advance) -> None:
    engines = {kind: build(tiny(f"train.ema={kind}")) for kind in ("halflife", "power")}
    losses = [advance(engine, tiny(), start=0, num_steps=3) for engine in engines.values()]
    assert losses[0] == losses[1]
    weights = [engine.partitions.flats for engine in engines.values()]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_the_first_power_average_is_the_one_that_is_applied(build: Build, tiny: Tiny) -> None:
    engine = build(tiny("train.ema=power"))
    for value, flats in enumerate(engine.ema.averages, start=2):
        for flat in flats:
            flat.fill_(value)
    with engine.ema.applied():
        assert all((p == 2).all() for p in engine.model.parameters())
    assert [float(flats[0][0]) for flats in engine.ema.averages] == [2, 3]


def test_a_halflife_keeps_one_average(build: Build, tiny: Tiny) -> None:
    engine = build(tiny())
    assert (engine.ema.widths, len(engine.ema.averages)) == ((), 1)
