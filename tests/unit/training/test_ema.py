"""The moving average against its closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.training.engine import Engine, build_engine
from experiments.training.objective import forward_loss, to_device

Build = Callable[[RunConfig], Engine]
Tiny = Callable[..., RunConfig]


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
            return float(forward_loss(engine.model.eval(), batch, config.model.patch_size)[0].mean())

    for flat in engine.ema.flats:
        flat.normal_(std=0.1, generator=torch.Generator(flat.device).manual_seed(0))
    before = loss()
    with engine.ema.applied():
        inside = loss()
    assert loss() == before != inside
    with engine.ema.applied():
        assert loss() == inside
