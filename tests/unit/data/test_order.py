"""The order of an epoch: every image once, another order every time, without storing it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from experiments.data.order import shuffled


@pytest.mark.parametrize("num_images", [1, 2, 3, 5, 64, 100, 1023, 1025])
def test_every_epoch_has_every_image_once(num_images: int) -> None:
    for epoch in range(3):
        positions = np.arange(epoch * num_images, (epoch + 1) * num_images)
        assert sorted(shuffled(7, positions, num_images)) == list(range(num_images))


def test_an_image_is_found_without_the_others_and_across_epochs() -> None:
    whole = shuffled(0, np.arange(300), 100)
    assert np.array_equal(shuffled(0, np.arange(95, 205), 100), whole[95:205])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = shuffled(0, np.arange(2000), 1000).reshape(2, 1000)
    other = shuffled(1, np.arange(1000), 1000)
    for one, two in ((first, second), (first, other)):
        assert (one == two).sum() < 10  # one on average
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.1


def test_an_order_is_as_good_as_random() -> None:
    order = shuffled(3, np.arange(4096), 4096)
    assert kstest(order[:512] / 4096, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_a_billion_images_take_no_memory() -> None:
    order = shuffled(0, np.arange(10**6, 10**6 + 1000), 1_200_000_000)
    assert 0 <= order.min() < order.max() < 1_200_000_000
    assert len(set(order.tolist())) == 1000
