"""The run table holds final values; Markdown cells say what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.load_records import Records, load_records
from analysis.run_table import fixed, markdown, run_table, significant


def test_every_run_has_its_arm_and_its_final_values(study: Records) -> None:
    table = run_table(study).set_index(["arm", "seed"])
    assert len(table) == len(study.runs)
    run = table.loc[("Expert choice", 1)]
    assert run["val_loss"] == pytest.approx(0.2 - 1.5e-5 * 9600 + 0.001)
    assert run["val_loss_same_t"] == pytest.approx(run["val_loss"])
    assert run["train_loss"] == pytest.approx(run["val_loss"])
    assert (run["train_seconds"], run["images_per_second"]) == (96.0, 100.0)
    assert math.isnan(run["val_loss_ema"])


def test_a_throughput_is_the_median_over_the_rows(study: Records) -> None:
    steps = study.steps.copy()
    steps.loc[steps["images_seen"] == 320, "images_per_second"] = 1.0
    paused = Records(study.runs, steps, study.evals, study.left_out)
    assert set(run_table(paused)["images_per_second"]) == {100.0}


def test_utilisation_is_a_share_of_the_peak_of_all_processes_and_missing_without_one(
    tmp_path: Path, write_run: Callable[..., Any]
) -> None:
    settings = {"routing": {"name": "dense"}, "train": {"images": 3200}, "eval": {"every_images": 1600}}
    peaks = {"matmul_flops_per_second": 1e11, "world": 2, "created_at": "2026-01-02"}
    write_run(tmp_path / "measured", settings, lambda n: 1 / n, images_per_second=50.0, **peaks)
    write_run(tmp_path / "older", settings | {"seed": 1}, lambda n: 1 / n)
    table = run_table(load_records([tmp_path])).set_index("seed")
    expected = 50 * table["train_flops_per_image"][0] / 2e11
    assert table["utilisation"][0] == pytest.approx(expected)
    assert math.isnan(table["utilisation"][1])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1_234_567, "1.23M"), (409_000, "409k"), (35.7e6, "35.7M"), (4.1e12, "4.1T"), (0.5, "0.5"), (None, "–")],
)
def test_numbers_have_si_prefixes(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_a_missing_value_is_a_dash() -> None:
    assert [fixed(None, 2), fixed(math.nan, 2), fixed(0.0, 2), fixed(0.0125, 1, scale=1e3)] == [
        "–",
        "–",
        "0.00",
        "12.5",
    ]


def test_markdown_keeps_a_bar_inside_its_cell() -> None:
    assert markdown(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| :-- | --: |\n| x\\|y | 1 |\n"
