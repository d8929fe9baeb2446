"""The peak that utilisation is a share of, by a clock that stands still but for what a test says a product takes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.training import matmul_speed

PRODUCTS = matmul_speed.NUM_REPETITIONS + 1
"""The first one, which loads the kernel, is not timed."""


class Products(TorchDispatchMode):
    """The sides of the matrices that are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.mm:
            self.sides.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def readings(*seconds: float) -> Iterator[float]:
    """What the clock says before and after products that take so long."""
    now = 100.0
    for one in seconds:
        yield now
        now += one
        yield now


def measure(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> tuple[float, list[int]]:
    """The peak, and the sides of the matrices, where the timed products take `seconds`."""
    clock = readings(*seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with Products() as products:
        return matmul_speed.matmul_flops_per_second("fp32"), products.sides


def test_it_is_the_fastest_of_several_products_and_ends_with_the_first_long_one(monkeypatch) -> None:
    measured, sides = measure(monkeypatch, 2e-3, 1e-3, 3e-3, 6e-3, 7e-3, 5e-3)
    assert sides == [256] * PRODUCTS + [512] * PRODUCTS
    assert measured == pytest.approx(2 * 512**3 / 5e-3)


def test_a_large_product_that_is_slower_for_its_size_does_not_lower_it(monkeypatch) -> None:
    measured, _ = measure(monkeypatch, 1e-3, 1e-3, 1e-3, 9e-3, 9e-3, 9e-3)
    assert measured == pytest.approx(2 * 256**3 / 1e-3)


def test_it_changes_no_random_state(monkeypatch) -> None:
    state = torch.get_rng_state()
    _, sides = measure(monkeypatch, *[3e-3] * matmul_speed.NUM_REPETITIONS)
    assert sides == [256] * PRODUCTS
    assert torch.equal(torch.get_rng_state(), state)
