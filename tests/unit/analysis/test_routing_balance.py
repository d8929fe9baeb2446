"""MaxVio and pair usage are those of the last validation on mixed batches; without records they are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.arm_columns import columns_of
from analysis.arm_table import arm_table
from analysis.compare import ARM_COLUMNS, compare
from analysis.figures.registry import find_figure
from analysis.load_records import Records, load_records, read_routing
from analysis.run_table import run_table
from experiments.records.record_types import RoutingRow
from experiments.records.run_folder import RunDir, find_runs

IMAGES = 9600
ARMS = {"dense": ({}, {"name": "dense"}, 1e-5), "ec": ({}, {"name": "expert_choice"}, 1.5e-5)}
LOADS = {1: [0.4, 0.2, 0.2, 0.2], 3: [0.25, 0.25, 0.25, 0.25]}
"""MaxVio is 0.6 in layer 1 and 0 in layer 3."""


def row(layer: int, **given: Any) -> RoutingRow:
    about = {
        "images_seen": IMAGES, "layer": layer, "condition": "mixed_t", "load": LOADS[layer], "entropy": 0.9,
        "load_entropy": 0.9, "dropped_share": 0.1, "experts_per_token": [0.1, 0.9],
    }  # fmt: skip
    return RoutingRow.model_validate(about | given)


def write_routing(run: RunDir, rows: list[RoutingRow]) -> None:
    run.routing.write_text("".join(each.model_dump_json(exclude_none=True) + "\n" for each in rows))


@pytest.fixture
def folder(write_arms: Callable[..., Path]) -> Path:
    """Two arms of two seeds, of which the sparse one has rows of routing."""
    folder = write_arms(ARMS, seeds=(0, 1))
    for run in find_runs(folder):
        if run.read_run().config["routing"]["name"] != "dense":
            earlier = [row(layer, images_seen=1600, load=[1.0, 0.0, 0.0, 0.0]) for layer in LOADS]
            same = [row(layer, condition="same_t", load=[1.0, 0.0, 0.0, 0.0]) for layer in LOADS]
            last = [row(layer, pair_usage=0.2 * layer, slots_by_time=[2.0] * 10) for layer in LOADS]
            write_routing(run, [*earlier, *same, *last])
    return folder


def arms_of(records: Records) -> pd.DataFrame:
    return arm_table(records, run_table(records)).set_index("arm")


def test_they_are_means_over_the_layers_of_the_last_validation(folder: Path) -> None:
    arm = arms_of(load_records([folder])).loc["Expert choice"]
    assert arm["max_violation"] == pytest.approx(0.3)
    assert arm["pair_usage"] == pytest.approx(0.4)


def test_the_rows_of_routing_are_read_once_for_all_tables(folder: Path) -> None:
    records = load_records([folder])
    first = arms_of(records)
    for run in find_runs(folder):
        run.routing.unlink(missing_ok=True)
    pd.testing.assert_frame_equal(arms_of(records), first)
    assert first["max_violation"].notna().any()


def test_only_the_rows_at_the_end_are_kept_where_no_others_are_wanted(folder: Path) -> None:
    frame, left_out = read_routing(load_records([folder]), at_end=True)
    assert left_out == []
    assert set(frame["images_seen"]) == {IMAGES}
    assert frame["condition"].value_counts().to_dict() == {"mixed_t": 4, "same_t": 4}


def test_they_are_missing_and_not_0_where_nothing_was_recorded(folder: Path) -> None:
    dense = arms_of(load_records([folder])).loc["Dense (same depth)"]
    assert pd.isna(dense["max_violation"])
    assert pd.isna(dense["pair_usage"])


def test_columns_without_any_value_are_left_out(folder: Path, write_arms: Callable[..., Path]) -> None:
    shown = [column.key for column in columns_of(arms_of(load_records([folder])), ARM_COLUMNS)]
    assert {"max_violation", "pair_usage"} <= set(shown)
    assert not {"val_loss_training_decision", "executed_flops_per_image", "peak_memory_gib"} & set(shown)
    for run in find_runs(folder):
        run.routing.unlink(missing_ok=True)
    shown = [column.key for column in columns_of(arms_of(load_records([folder])), ARM_COLUMNS)]
    assert not {"max_violation", "pair_usage"} & set(shown)


def test_optional_lists_of_a_row_are_read_or_missing(folder: Path) -> None:
    frame, left_out = read_routing(load_records([folder]))
    assert left_out == []
    last = frame[(frame["images_seen"] == IMAGES) & (frame["condition"] == "mixed_t")]
    assert last["slots_by_time"].to_list() == [[2.0] * 10] * 4
    assert frame["slots_by_image"].isna().all()


def test_a_list_that_is_none_is_named(folder: Path) -> None:
    run = next(run for run in find_runs(folder) if run.routing.is_file())
    text = run.routing.read_text().replace('"slots_by_time":[2.0,', '"slots_by_time":["2",', 1)
    run.routing.write_text(text)
    notes = compare(load_records([folder])).notes
    assert any("1 row of routing.jsonl damaged" in note for note in notes)


def test_the_comparison_draws_what_is_known_and_nothing_else(folder: Path) -> None:
    records = load_records([folder])
    labels = [axes.get_xlabel() for axes in find_figure("comparison").draw(records, run_table(records)).figure.axes]
    assert len(labels) == 6
    assert labels[4:] == ["MaxVio\n(E max load - 1)", "Pairs of experts\nin use (%)"]
