"""At a terminal a row of a table is one line at any width, and names stay told apart."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from analysis.arm_columns import arm_columns
from analysis.columns import Column
from analysis.compare import ARM_COLUMNS
from ecdit_cli._evaluation_table import evaluation_columns
from ecdit_cli._sweep_cost import COST_COLUMNS
from ecdit_cli._sweep_view import COLUMNS, live_table
from ecdit_cli._table import print_table
from ecdit_cli.presets import COLUMNS as PRESET_COLUMNS
from experiments.records.record_types import EvalRow
from sweeps.progress import RunProgress, SweepSnapshot

REASON = "[/__w/gloo/pair.cc:534] Connection closed by peer [10.0.0.7]:4711 " * 3
NAMES = [f"nano-shared_expert-16e-k2-c1.25-gbatch-s{seed}-{seed}a2b3c" for seed in range(3)] + ["名" * 30]
EVALUATION_COLUMNS = evaluation_columns()
COMPARISON_COLUMNS = (*arm_columns("setup"), *ARM_COLUMNS)
MEASURED = [column for column in EVALUATION_COLUMNS if column.whole and not column.key.startswith("overhead_")]
WIDTHS = (40, 41, 60, 79, 80, 100, 120, 160, 200)


def row(name: str, columns: tuple[Column, ...]) -> dict[str, Any]:
    """A value for every column."""
    words: dict[str, Any] = dict.fromkeys(("name", "run", "setup"), name)
    words |= {"arm": "Expert choice (16E, f_c 2)", "preset": "dit-moe-XL", "state": "interrupted", "reason": REASON}
    measured = EvalRow(images_seen=1, metric="fid", value=0.5, num_samples=1, seed=0, weights="raw")
    tuned = {"setting": "optim.learning_rate", "value": 0.002, "edge": True}
    words |= {"tuned": tuned, "retry_of": name, "rate": "0.002, best of 6, at the edge"}
    words |= {"differs": {"optim.parametrization": "mup", "model.base_width": 64}}
    values = {column.key: measured if column in MEASURED else 12_800 for column in columns}
    values |= {"num_samples": {"fid": 12_800}} if columns is EVALUATION_COLUMNS else {}
    return {**values, **words}


def printed(columns: tuple[Column, ...], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_table(console, [row(name, columns) for name in NAMES], columns, "")
    return [line for line in console.file.getvalue().splitlines() if line.strip() and "──" not in line]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "columns",
    [COLUMNS, COST_COLUMNS, COMPARISON_COLUMNS, PRESET_COLUMNS, EVALUATION_COLUMNS],
    ids=["status", "cost", "comparison", "presets", "evaluation"],
)
def test_a_row_is_one_line_within_the_width(columns: tuple[Column, ...], width: int) -> None:
    lines = printed(columns, width)
    assert len(lines) == 1 + len(NAMES)
    assert all(cell_len(line) <= width for line in lines)
    assert lines[0].split()[0] == columns[0].title


@pytest.mark.parametrize("width", WIDTHS)
def test_names_of_runs_and_their_states_are_always_told_apart(width: int) -> None:
    _, *lines = printed(COLUMNS, width)
    assert len({line.split()[0] for line in lines}) == len(NAMES)
    assert all("interrupted" in line for line in lines)


def test_what_is_left_away_is_said_and_a_wide_terminal_has_all(capsys: pytest.CaptureFixture[str]) -> None:
    printed(COLUMNS, 60)
    assert capsys.readouterr().err.startswith("Left away at this width: ")
    assert "val_loss" in printed(COLUMNS, 400)[0]
    assert capsys.readouterr().err == ""


def test_numbers_are_never_cut() -> None:
    columns = (Column("name", "run"), Column("reason", "reason"), Column("images_seen", "images", "{:,}".format))
    for width in WIDTHS:
        assert all(line.rstrip().endswith("12,800") for line in printed(columns, width)[1:])


def test_sentences_may_take_several_lines_and_are_whole() -> None:
    lines = printed((Column("name", "run"), Column("reason", "reason", prose=True)), 80)
    assert len(lines) > 1 + len(NAMES)
    assert "…" not in "".join(line[26:] for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_view_keeps_to_the_width(width: int) -> None:
    runs = [RunProgress(name, "interrupted", 9600, 38400, 0.5, images_per_second=8.0) for name in NAMES[:3]]
    console = Console(file=io.StringIO(), width=width)
    console.print(live_table(SweepSnapshot(runs), width, 20))
    lines = [line for line in console.file.getvalue().splitlines() if line.strip().startswith("nano")]
    assert len({line.split()[0] for line in lines}) == 3
    assert all(cell_len(line) <= width for line in console.file.getvalue().splitlines())
