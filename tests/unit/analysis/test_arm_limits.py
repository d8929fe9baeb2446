"""A figure shows the best settings and arms where there are many, stays legible, and says what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.text import Text

from analysis.figures.arm_limits import ALL_LIMITS, MOST_ARMS_OF_A_ROUTER, MOST_SETUPS, within_limits
from analysis.figures.registry import FIGURES, FigureEntry, find_figure
from analysis.load_records import Records, load_records
from analysis.run_table import run_table
from analysis.style import DOTS_PER_INCH
from tests.unit.analysis.test_figures import assert_legible, rendered

MOST_INCHES = 26
"""Three pages of panels, 5,200 pixels."""
NUM_SETUPS = 30
LIMITED = [
    entry for entry in FIGURES.values() if "setups" in entry.limits and entry.name not in {"capacity", "expert-scaling"}
]
EXPERT_ARMS: dict[str, Any] = {
    f"{experts}-{factor}-{group}": (
        {},
        {"name": "expert_choice", "num_experts": experts, "capacity_factor": factor, "group_images": group},
        1e-5 + 1e-8 * experts * factor,
    )
    for experts, factor, group in product((4, 8, 16, 32), (0.5, 1.0, 2.0), (1, 2, 4))
}
MANY_ARMS = {"dense": ({}, {"name": "dense"}, 1e-5), **EXPERT_ARMS}


def table_of(rows: list[tuple[str, str, str, int, float]]) -> pd.DataFrame:
    """A run table of (setting, arm, router, variant, loss)."""
    frame = pd.DataFrame(rows, columns=["setup", "arm", "routing.name", "variant", "val_loss"])
    dense = frame["routing.name"] == "dense"
    return frame.assign(
        **{
            "model.name": frame["setup"].str.partition(",")[0],
            "arm_kind": dense.map({True: "dense_same_depth", False: "sparse"}),
        }
    )


@pytest.fixture(scope="module")
def made() -> dict[str, Records]:
    """Records that several tests of this file use and none changes."""
    return {}


@pytest.fixture
def many_rates(
    made: dict[str, Records], tmp_path: Path, write_run: Callable[..., Any],
    measure_costs: Callable[..., None], evaluate: Callable[..., None],
) -> Records:  # fmt: skip
    """A search over the learning rate: thirty settings of dense and expert choice, the first the best."""
    if "rates" in made:
        return made["rates"]
    for i, router in product(range(NUM_SETUPS), ("dense", "expert_choice")):
        settings = {
            "model": {"name": "nano"}, "routing": {"name": router}, "optim": {"learning_rate": 1e-4 * (i + 1)},
            "train": {"images": 9600}, "eval": {"every_images": 1600}, "seed": 0,
        }  # fmt: skip
        level = 0.2 + 0.001 * i
        write_run(
            tmp_path / "rates" / f"{router}-{i}", settings, lambda n, level=level: level - 1e-5 * n,
            final={"val_loss_same_t": level}, inference_seconds=0.01,
        )  # fmt: skip
    for add in (evaluate, measure_costs):
        add(tmp_path / "rates")
    made["rates"] = load_records([tmp_path / "rates"])
    return made["rates"]


@pytest.fixture
def many_arms(
    made: dict[str, Records], write_arms: Callable[..., Path],
    measure_costs: Callable[..., None], evaluate: Callable[..., None],
) -> Records:  # fmt: skip
    """Dense and thirty-six arms of expert choice in one setup."""
    if "arms" in made:
        return made["arms"]
    folder = write_arms(MANY_ARMS, seeds=(0,))
    for add in (evaluate, measure_costs):
        add(folder)
    made["arms"] = load_records([folder])
    return made["arms"]


def said(entry: FigureEntry, records: Records) -> tuple[Any, str]:
    drawing = entry.drawing(records, run_table(records))
    figure = rendered(drawing.figure)
    return drawing, " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


@pytest.mark.parametrize("entry", LIMITED, ids=lambda entry: entry.name)
def test_a_figure_of_many_settings_shows_the_best_and_says_what_is_left_out(
    entry: FigureEntry, many_rates: Records
) -> None:
    drawing, text = said(entry, many_rates)
    assert drawing.numbers["setup"].nunique() == MOST_SETUPS
    assert "nano, optim.learning_rate=0.0001" in set(drawing.numbers["setup"])
    assert drawing.figure.get_figheight() <= MOST_INCHES
    assert drawing.figure.get_figheight() * DOTS_PER_INCH <= 65_800 / 10
    assert f"Shown are the 8 of {NUM_SETUPS} setups with the lowest validation loss" in text
    assert "the others reach" in text
    assert "ecdit export" in text
    assert_legible(drawing.figure)


@pytest.mark.parametrize(
    "entry", [entry for entry in FIGURES.values() if "settings" in entry.limits], ids=lambda entry: entry.name
)
def test_a_figure_of_many_arms_is_not_covered_by_their_names(entry: FigureEntry, many_arms: Records) -> None:
    drawing, text = said(entry, many_arms)
    assert_legible(drawing.figure)
    assert drawing.figure.get_figheight() <= MOST_INCHES
    if entry.limits == ALL_LIMITS:
        assert drawing.numbers["arm"].nunique() == 1 + MOST_ARMS_OF_A_ROUTER
        assert "Shown are 7 of 37 arms" in text


def test_few_settings_and_arms_are_all_shown(study: Records) -> None:
    table = run_table(study)
    shown = within_limits(table, ALL_LIMITS)
    pd.testing.assert_frame_equal(shown.table, table)
    assert not shown.notes


def test_the_sizes_of_a_study_stay_together() -> None:
    rows = [
        (f"{size}, rate={i}", "Expert choice", "expert_choice", 0, 0.1 + 0.01 * i + 0.5 * (size == "nano"))
        for i in range(6)
        for size in ("nano", "micro")
    ]
    shown = within_limits(table_of(rows), ("setups",))
    assert set(shown.table["setup"]) == {f"{size}, rate={i}" for i in range(4) for size in ("nano", "micro")}
    assert shown.notes[0] == (
        "Shown are the 8 of 12 setups with the lowest validation loss, 0.1000 to 0.6300; "
        "the others reach 0.1400 to 0.6500."
    )


def test_the_best_arms_stay_with_the_baselines_and_get_line_styles_of_their_own() -> None:
    arms = [(f"EC {i}", "expert_choice", i, 0.2 - 0.001 * i) for i in range(20)]
    rows = [("nano", "Dense (same depth)", "dense", 0, 0.9), *(("nano", *arm) for arm in arms)]
    shown = within_limits(table_of(rows), ("arms",)).table
    assert list(shown["arm"]) == ["Dense (same depth)", *(f"EC {i}" for i in range(14, 20))]
    assert list(shown["variant"]) == [0, 0, 1, 2, 3, 4, 5]


def test_a_figure_that_fits_laws_is_given_all_setups_and_arms_of_a_condition() -> None:
    for name in ("scaling-law", "curve-collapse", "isoflop"):
        assert set(find_figure(name).limits) <= {"conditions"}


def test_laws_are_those_of_the_best_conditions_and_the_others_are_said() -> None:
    rows = [
        (f"{size}, optim.learning_rate={rate}", "dense", "dense", 0, 0.3 + 0.01 * abs(rate - 5.1))
        for rate in range(10)
        for size in ("nano", "micro")
    ]
    shown = within_limits(table_of(rows), ("conditions",))
    kept = shown.table["setup"].str.rpartition("=")[2].astype(int)
    assert sorted(kept.unique()) == [4, 5, 6, 7]
    assert len(kept) == 8
    assert shown.notes[0] == (
        "Laws are those of the 4 of 10 conditions (such as the learning rate) that reach the lowest validation losses, "
        "0.3010 to 0.3190; the others reach 0.3210 to 0.3510."
    )
    few = table_of([row for row in rows if row[0].endswith(("=4", "=5"))])
    assert within_limits(few, ("conditions",)).notes == ()
