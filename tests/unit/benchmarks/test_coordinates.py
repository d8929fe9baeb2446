"""The coordinate check is flat in the maximal-update parametrization, and is not in the standard one."""

from __future__ import annotations

import pytest

from experiments.benchmarks.coordinates import check_config, measure_coordinates, sizes_after_steps
from experiments.config.blocks import BLOCKS


@pytest.mark.slow
def test_changes_do_not_grow_with_the_width_in_mup_and_do_in_standard() -> None:
    rows = {row["output"]: row for row in measure_coordinates([], widths=(32, 64, 128), seeds=3)}
    assert len(rows) == 9
    for name, row in rows.items():
        assert abs(row["mup_change"]) <= 0.2, (name, row)
    assert rows["modulation"]["standard_change"] > 0.7


def test_both_parametrizations_are_one_model_at_the_width_of_the_preset() -> None:
    kinds = ("standard", "mup")
    standard, mup = (sizes_after_steps(check_config([], kind, 64, seed=0), num_steps=3) for kind in kinds)
    assert standard == mup
    assert all(change > 0 for name, (_, change) in standard.items()), standard


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_has_the_outputs_of_its_parts(block: str) -> None:
    sizes = sizes_after_steps(check_config([f"model.block={block}"], "standard", 32, seed=0), num_steps=1)
    assert {"modulation", "self attention", "feed forward", "router logits", "velocity"} <= set(sizes)


def test_a_dense_model_has_no_router_to_check() -> None:
    sizes = sizes_after_steps(check_config(["routing=dense"], "standard", 32, seed=0), num_steps=1)
    assert "router logits" not in sizes
    assert "feed forward" in sizes
