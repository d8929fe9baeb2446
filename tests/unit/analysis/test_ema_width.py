"""Values of reconstructed averages have a figure of their own, and stand beside no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.export_tables import export_runs
from analysis.figures.registry import find_figure
from analysis.load_records import MissingDataError, load_records
from analysis.maps import MappedRun, scene_maps
from analysis.report.run_rows import last_scores
from analysis.run_table import run_table
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import find_runs
from experiments.records.writer import append_evaluations, append_routing_maps

WIDTHS = (0.03, 0.05, 0.1, 0.15)
PAIR = {"dense": ({}, {"name": "dense"}, 1e-5), "ec": ({}, {"name": "expert_choice"}, 1.2e-5)}
Row = Callable[..., EvalRow]


def loss_row(sampled: Row, width: float) -> EvalRow:
    row = sampled("validation-loss", 0.5 + (width - 0.07) ** 2, num_samples=16)
    return row.model_copy(update={"settings": {"precision": "fp32", "ema_width": width}})


@pytest.fixture
def folder(write_arms: Callable[..., Path], evaluate: Callable[..., None], sampled: Row) -> Path:
    """Two arms of two seeds, measured as ever, and the score last of all at four widths."""
    path = write_arms(PAIR, seeds=(0, 1))
    evaluate(path)
    for run in find_runs(path):
        append_evaluations(run, [sampled("shapes-geneval", 0.9 - width, 0.01, ema_width=width) for width in WIDTHS])
    return path


def numbers(name: str, folder: Path) -> pd.DataFrame:
    records = load_records([folder])
    return find_figure(name).draw(records, run_table(records)).numbers


def test_the_figure_shows_every_width_of_the_loss_first(folder: Path) -> None:
    records = load_records([folder])
    drawing = find_figure("ema-width").draw(records, run_table(records))
    assert list(drawing.numbers["metric"].unique()) == ["validation-loss", "shapes-geneval"]
    arm = drawing.numbers[drawing.numbers["arm"] == "Expert choice"]
    losses = arm[arm["metric"] == "validation-loss"]
    assert losses["ema_width"].to_list() == list(WIDTHS)
    curve = [(width - 0.07) ** 2 for width in WIDTHS]
    assert (losses["value"] - losses["value"].iloc[0]).to_list() == pytest.approx([each - curve[0] for each in curve])
    assert set(losses["num_seeds"]) == {2}
    assert arm[arm["metric"] == "shapes-geneval"]["value"].to_list() == pytest.approx([87, 85, 80, 75])
    left, right = drawing.figure.axes
    assert [axes.get_ylabel() for axes in (left, right)] == ["Validation loss\n(velocity MSE)", "shapes-geneval (%)"]


def test_a_single_width_is_no_figure(write_arms: Callable[..., Path], sampled: Row) -> None:
    path = write_arms(PAIR, seeds=(0,))
    for run in find_runs(path):
        append_evaluations(run, [loss_row(sampled, 0.1)])
    with pytest.raises(MissingDataError, match=r"at several widths of the average of its weights\. Measure it with"):
        numbers("ema-width", path)


@pytest.mark.parametrize("name", ["alignment", "quality-time", "quality-over-training", "guidance"])
def test_other_figures_show_what_they_showed_before(name: str, folder: Path, tmp_path: Path, sampled: Row) -> None:
    """The marked rows were written last, and of all rows of a metric the last would count."""
    with_widths = numbers(name, folder)
    for run in find_runs(folder):
        lines = run.evals.read_text().splitlines(keepends=True)
        run.evals.write_text("".join(line for line in lines if "ema_width" not in line))
    pd.testing.assert_frame_equal(with_widths, numbers(name, folder))


def test_tables_keep_them_apart(folder: Path) -> None:
    scores = last_scores(load_records([folder]).evals)
    assert not [name for name in scores.columns if "validation-loss" in name]
    assert scores[[name for name in scores.columns if "shapes-geneval@2" in name]].max().max() < 0.6
    table = export_runs(folder)
    assert {f"evals.ema@{width:g}.validation-loss" for width in WIDTHS} <= set(table.columns)
    assert table["evals.ema.shapes-geneval"].max() < 0.6
    assert table["evals.ema@0.03.shapes-geneval"].to_list() == pytest.approx([0.87] * 4)


def test_maps_of_a_reconstructed_average_are_left_out(folder: Path, map_routing: Callable[..., None]) -> None:
    map_routing(folder)
    run = next(run for run in find_runs(folder) if run.read_run().config["routing"]["name"] == "expert_choice")
    before = scene_maps(MappedRun(run, "expert_choice", "Expert choice"))
    assert before is not None
    marked = [row.model_copy(update={"settings": {**row.settings, "ema_width": 0.1}}) for row in before.rows]
    append_routing_maps(run, marked)
    after = scene_maps(MappedRun(run, "expert_choice", "Expert choice"))
    assert after is not None
    assert json.dumps([row.settings for row in after.rows]) == json.dumps([row.settings for row in before.rows])
