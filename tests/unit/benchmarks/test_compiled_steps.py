"""A compiled step beside a plain one: the row says what it saves, and when the time of compiling is made up for."""

from __future__ import annotations

import shutil

import pytest

from experiments.benchmarks.compiled_steps import measure_compiled
from experiments.config.overrides import load_config

SMALL = (
    "model=nano", "model.num_layers=2", "model.width=24", "model.num_heads=2", "train.batch_images=2", "routing=dense",
    "train.precision=fp32", "train.implementation=fast",
)  # fmt: skip
LOADING = 1000.0
"""Seconds, more than a step of this size takes to compile."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler imports parts that torch deprecates
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and g++ is not installed")
def test_a_row_counts_all_that_comes_before_the_first_compiled_step() -> None:
    (row,) = measure_compiled([load_config(SMALL)], 1, LOADING)
    assert row["compiled_first_step_seconds"] - LOADING > row["first_step_seconds"] > 0
    saved = row["seconds"] - row["compiled_seconds"]
    extra = row["compiled_first_step_seconds"] - row["first_step_seconds"]
    assert row["pays_after_steps"] == (round(extra / saved) if saved > 0 else None)
    assert row["ratio"] == row["ratio_to_fast"] == pytest.approx(row["seconds"] / row["compiled_seconds"])
    assert row["graph_breaks"] == 0
