"""Savings are read off the ends of trainings of several lengths, and grow with size where the curves say so."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
import pytest

from analysis.savings import growth, savings

LENGTHS = (1000, 2000, 4000)
SIZES = (24, 48, 96)


def study(saving: Callable[[int], float], seeds: tuple[int, ...] = (0, 1, 2), offset: float = 1e-3) -> pd.DataFrame:
    """Losses linear in the log of the images, on which an arm is ahead by `saving` of its size, in images."""
    rows = []
    for size in SIZES:
        for seed in seeds:
            for images in LENGTHS:
                for arm, kind, factor in (("dense", "dense_same_depth", 1.0), ("arm", "sparse", saving(size))):
                    loss = 1.0 - 0.1 * math.log(images * factor) + offset * seed
                    cost = {"images_seen": images, "train_flops": 3.0 * images * size, "train_seconds": images / 100}
                    rows.append({"arm": arm, "arm_kind": kind, "size": size, "seed": seed, "val_loss": loss, **cost})
    return pd.DataFrame(rows)


def test_a_saving_is_the_ratio_of_images_at_the_lowest_loss_that_both_reach() -> None:
    found = savings(study(lambda size: 1.5), "size")
    assert set(found["axis"]) == {"images_seen", "train_flops", "train_seconds"}
    assert len(found) == len(SIZES) * 3 * 3
    assert [math.exp(each) for each in found["log_saving"]] == pytest.approx([1.5] * len(found))
    assert not found["is_limit"].any()
    assert all(gap.mean == pytest.approx(0, abs=1e-9) for gap in growth(found).values())


def test_an_arm_that_needs_more_has_a_saving_below_one() -> None:
    found = savings(study(lambda size: 0.8), "size")
    assert [math.exp(each) for each in found["log_saving"]] == pytest.approx([0.8] * len(found))


def test_a_saving_that_is_proportional_to_the_size_doubles_with_each_doubling() -> None:
    at = growth(savings(study(lambda size: 1.2 * (size / 24) ** 0.5), "size"))[("arm", "images_seen")]
    assert at.mean == pytest.approx(0.5)
    assert at.num_values == 3


@pytest.mark.parametrize(("factor", "limit"), [(10.0, 4.0), (0.1, 0.25)])
def test_a_saving_outside_of_what_was_run_is_marked_as_a_limit(factor: float, limit: float) -> None:
    found = savings(study(lambda size: factor), "size")
    assert found["is_limit"].all()
    assert [math.exp(each) for each in found["log_saving"]] == pytest.approx([limit] * len(found))


DENSE, RISING = (0.26, 0.23, 0.205), (0.2, 0.205, 0.21)


@pytest.mark.parametrize(
    ("ours", "dense", "ratios"),
    [
        (RISING, DENSE, [4.0]),  # below dense's final loss at the shortest length, whatever comes later
        (DENSE, RISING, [0.25]),
        ((0.21, 0.2, 0.215), DENSE, []),  # the arm passes dense's final loss in between, and no limit says where
    ],
)
def test_losses_that_rise_with_length_do_not_turn_a_saving_round(
    ours: tuple[float, ...], dense: tuple[float, ...], ratios: list[float]
) -> None:
    every = study(lambda size: 1.0, seeds=(0,))
    table = every[every["size"] == 24].copy()
    for arm, losses in (("arm", ours), ("dense", dense)):
        table.loc[table["arm"] == arm, "val_loss"] = list(losses)
    found = savings(table, "size")
    of_images = found[found["axis"] == "images_seen"]
    assert [math.exp(each) for each in of_images["log_saving"]] == pytest.approx(ratios)
    assert of_images["is_limit"].all()


def test_a_size_without_dense_and_an_arm_of_one_length_have_no_saving() -> None:
    table = study(lambda size: 1.5)
    without = table[(table["size"] != 48) | (table["arm"] != "dense")]
    assert set(savings(without, "size")["size"]) == {24, 96}
    assert savings(table[table["images_seen"] == 4000], "size").empty
    assert growth(savings(table[table["size"] == 48], "size")) == {}
