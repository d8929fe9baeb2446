"""The size of a model is counted as asked, and the axis says how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.figures.registry import find_figure
from analysis.load_records import Records, load_records
from analysis.parameter_counts import COUNTS, find_count
from analysis.run_table import run_table
from experiments.errors import EcditError
from experiments.records.run_folder import RunDir

Add = Callable[..., None]


@pytest.fixture
def scored(write_arms: Callable[..., Path], evaluate: Add) -> Records:
    folder = write_arms(seeds=(0,), presets=("nano", "micro"))
    evaluate(folder)
    return load_records([folder])


def test_the_four_counts_of_every_run_follow_from_its_parts(study: Records) -> None:
    for row in study.runs.to_dict("records"):
        parts = RunDir(Path(str(row["run"]))).read_run().params_by_part
        embeddings = parts["embed"] + parts["time"] + parts["text"]
        assert row["params_total"] == sum(parts.values())
        assert row["params_total"] - row["params_without_embeddings"] == embeddings
        assert row["params_active"] - row["params_active_without_embeddings"] == embeddings


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("figure", ["alignment", "image-quality"])
def test_points_stand_at_the_count_and_the_axis_names_it(name: str, figure: str, scored: Records) -> None:
    count, table = find_count(name), run_table(scored)
    drawing = find_figure(figure).drawing(scored, table, parameters=count)
    sizes = {row["arm"]: row[count.column] for row in table[table["model.name"] == "nano"].to_dict("records")}
    nano = drawing.numbers[drawing.numbers["model.name"] == "nano"]
    assert nano.set_index("arm")[count.column].to_dict() == sizes
    axes = drawing.figure.axes[0]
    factor = {"thousands": 1e3, "millions": 1e6}[axes.get_xlabel().removeprefix(f"{count.label} (").removesuffix(")")]
    drawn = {round(float(x) * factor) for line in axes.lines for x in line.get_xdata()}
    assert set(table[count.column]) <= drawn


@pytest.mark.parametrize("name", COUNTS)
def test_the_best_size_of_a_budget_is_counted_as_asked(name: str, write_budgets: Callable[..., Path]) -> None:
    records, count = load_records([write_budgets()]), find_count(name)
    drawing, table = find_figure("isoflop").drawing(records, run_table(records), parameters=count), run_table(records)
    profiles = drawing.numbers[drawing.numbers["split"] == "profile"]
    assert set(profiles["params"]) == set(table[count.column])
    assert set(drawing.numbers["params_counted"]) == {count.column}
    assert drawing.figure.axes[0].get_xlabel().startswith(count.label)


def test_an_unknown_count_names_the_closest() -> None:
    with pytest.raises(EcditError, match=r"'activate' is no way to count parameters\. Did you mean 'activated'\?"):
        find_count("activate")
