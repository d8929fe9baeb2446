"""How values and rows are written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from analysis.columns import Column
from ecdit_cli._console import print_error, print_json, print_rows
from experiments.units import count, duration, flops

ROWS: list[dict[str, Any]] = [
    {"name": "a", "loss": 0.5, "images": 32},
    {"name": "long name", "loss": None, "images": 6400},
]
COLUMNS = [Column("name", "run"), Column("loss", "loss", "{:.4f}".format), Column("images", "images")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (64, "64"),
        (999, "999"),
        (1000, "1.00K"),
        (342_000, "342K"),
        (999_499, "999K"),
        (999_500, "1.00M"),
        (1_620_000_000, "1.62B"),
        (9_896_800_000, "9.90B"),
        (97.21e9, "97.2B"),
        (5e15, "5000T"),
    ],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(44_200_000, "44.2 MFLOP"), (7, "7 FLOP"), (3.07e12, "3.07 TFLOP"), (1e21, "1000 EFLOP")]
)
def test_flops_carry_their_unit(value: float, text: str) -> None:
    assert flops(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (250, "4 min 10 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_text_is_aligned_and_a_missing_value_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, COLUMNS, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "run          loss  images",
        "a          0.5000      32",
        "long name            6400",
    ]


def test_json_has_raw_values_and_leaves_missing_ones_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, COLUMNS, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert rows == [{"name": "a", "loss": 0.5, "images": 32}, {"name": "long name", "images": 6400}]


def test_no_rows_is_a_header_or_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([], COLUMNS, as_json=False)
    print_rows([], COLUMNS, as_json=True)
    assert capsys.readouterr().out == "run  loss  images\n[]\n"


def test_json_never_holds_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"loss": float("nan")})


def test_an_error_is_one_line_on_stderr_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("[bold] key='x'\nis wrong " + "long " * 60)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: [bold] key='x' is wrong long")
    assert captured.err.count("\n") == 1
