"""The learning rate at the images that decide it."""

from __future__ import annotations

import pytest

from experiments.config.overrides import load_config
from experiments.training.schedule import learning_rate


def rate(images_seen: int, *overrides: str) -> float:
    config = load_config(
        [
            "optim.learning_rate=1e-2",
            "train.images=1000",
            "train.batch_images=10",
            "optim.warmup_images=100",
            *overrides,
        ]
    )
    return learning_rate(config, images_seen)


def test_warm_up_rises_linearly_and_its_first_step_is_not_wasted() -> None:
    assert [rate(n, "optim.schedule=constant") for n in (0, 10, 40, 90, 100, 990)] == pytest.approx(
        [1e-3, 2e-3, 5e-3, 1e-2, 1e-2, 1e-2]
    )


def test_cosine_is_half_at_half_of_what_follows_the_warm_up_and_falls_to_zero() -> None:
    assert rate(100) == pytest.approx(1e-2)
    assert rate(550) == pytest.approx(5e-3)
    assert rate(325) == pytest.approx(1e-2 * (2 + 2**0.5) / 4)
    assert 0 < rate(990) < 1e-5


def test_it_never_rises_again_after_the_warm_up() -> None:
    rates = [rate(n) for n in range(100, 1000, 10)]
    assert rates == sorted(rates, reverse=True)


def test_without_warm_up_it_begins_at_the_full_rate() -> None:
    assert rate(0, "optim.warmup_images=0") == pytest.approx(1e-2)


def test_a_warm_up_longer_than_the_run_is_still_a_rate() -> None:
    assert [rate(n, "optim.warmup_images=2000", "optim.schedule=constant") for n in (0, 990)] == pytest.approx(
        [5e-5, 5e-3]
    )


def test_a_last_batch_beyond_the_horizon_is_still_a_rate() -> None:
    assert rate(1000, "train.images=1005") >= 0


def test_wsd_is_constant_until_its_cooldown_and_then_falls_as_one_minus_the_root() -> None:
    assert [rate(n, "optim.schedule=wsd") for n in (0, 40, 100, 500, 790, 800)] == pytest.approx(
        [1e-3, 5e-3, 1e-2, 1e-2, 1e-2, 1e-2]
    )
    assert rate(850, "optim.schedule=wsd") == pytest.approx(1e-2 * (1 - 0.25**0.5))
    assert rate(990, "optim.schedule=wsd") == pytest.approx(1e-2 * (1 - 0.95**0.5))


def test_wsd_can_fall_on_a_line() -> None:
    linear = ("optim.schedule=wsd", "optim.cooldown_shape=linear", "optim.cooldown_share=0.5")
    assert [rate(n, *linear) for n in (490, 500, 750, 990)] == pytest.approx([1e-2, 1e-2, 5e-3, 2e-4])


def test_before_the_cooldown_the_length_of_the_run_changes_no_rate() -> None:
    short = [rate(n, "optim.schedule=wsd") for n in range(0, 800, 10)]
    assert short == [rate(n, "optim.schedule=wsd", "train.images=5000") for n in range(0, 800, 10)]
