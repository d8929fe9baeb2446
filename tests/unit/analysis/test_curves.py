"""Curves over images, FLOPs and seconds; where one reaches a loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.curves import denoised, mean_over_seeds, reach, smooth, training_curves, validation_curves
from analysis.executed_flops import flops_at
from analysis.load_records import Records, load_records
from analysis.run_table import run_table


def test_a_curve_reaches_a_loss_between_two_points_along_a_straight_line() -> None:
    assert reach([100, 200, 300], [3.0, 2.0, 1.0], 1.25) == 275.0


def test_a_dip_that_does_not_last_is_no_reaching() -> None:
    assert reach([100, 200, 300, 400], [3.0, 1.0, 3.0, 1.0], 2.0) == 350.0


def test_a_curve_that_ends_above_never_reaches() -> None:
    assert reach([100, 200, 300], [3.0, 1.0, 2.0], 1.5) is None


def test_a_curve_that_starts_below_reaches_at_its_first_point() -> None:
    assert reach([100, 200], [1.0, 0.5], 2.0) == 100.0


def test_noise_does_not_move_where_a_loss_is_reached() -> None:
    """The last time through a loss is too late, the first too early."""
    images, random = np.arange(1, 49) * 200.0, np.random.default_rng(0)
    law = 0.1 + 30 * images**-0.6
    target = 0.1 + 30 * 6000.0**-0.6
    reached = [reach(images.tolist(), (law * np.exp(random.normal(0, 0.03, 48))).tolist(), target) for _ in range(100)]
    assert None not in reached
    assert np.exp(np.mean(np.log(np.array(reached, dtype=float)))) == pytest.approx(6000, rel=0.02)


@pytest.mark.parametrize("x", [[0, 1, 2, 3, 4], [1, 2, 2, 3, 4], [1, 2, 3, 4]])
def test_a_curve_that_cannot_be_smoothed_is_left_as_it_is(x: list[float]) -> None:
    loss = [3.0, 1.0, 2.5, 0.5, 1.5][: len(x)]
    assert denoised(x, loss).tolist() == loss


def test_a_curve_that_reaches_a_loss_with_its_last_point_reaches_it_there() -> None:
    images, loss = [100, 200, 300, 400, 500, 600], [3.0, 2.5, 2.7, 2.2, 2.4, 1.9]
    assert reach(images, loss, 1.9) == 600.0
    assert reach(images, loss, 1.8) is None


def test_flops_and_seconds_belong_to_the_images_of_an_evaluation(study: Records) -> None:
    table = run_table(study)
    curves = validation_curves(study, table).merge(table[["run", "train_flops_per_image"]], on="run")
    assert list(curves["flops"]) == list(curves["images_seen"] * curves["train_flops_per_image"])
    assert curves["seconds"].to_list() == pytest.approx((curves["images_seen"] / 100.0).to_list())


def test_curves_do_not_depend_on_how_the_rows_of_runs_are_mixed(study: Records) -> None:
    table = run_table(study)
    mixed = Records(study.runs, study.steps.sort_values("images_seen", kind="stable"), study.evals, ())
    assert mixed.steps["run"].iloc[:12].nunique() == 12
    for curves in (validation_curves, training_curves):
        pd.testing.assert_frame_equal(curves(mixed, table), curves(study, table))


def test_seconds_are_missing_where_a_run_took_no_steps(study: Records) -> None:
    merged = str(study.runs["run"].iloc[0])
    others = Records(study.runs, study.steps[study.steps["run"] != merged], study.evals, ())
    curves = validation_curves(others, run_table(study))
    assert set(curves.loc[curves["seconds"].isna(), "run"]) == {merged}
    assert curves["flops"].notna().all()


def test_executed_flops_of_many_runs_are_found_in_one_pass() -> None:
    """Looking for the rows of each run by itself takes minutes for as many runs, and here 5 seconds."""
    names, rows = [f"run-{number}" for number in range(2000)], np.arange(1.0, 1001)
    runs = pd.DataFrame({"run": names, "flops_before": 0.0})
    runs = runs.assign(planned_train_flops_per_image=1.0, executed_train_flops_per_image=2.0)
    codes = np.repeat(np.arange(len(names)), len(rows))
    images = np.tile(rows, len(names))
    steps = pd.DataFrame({"run": pd.Categorical.from_codes(codes, names), "images_seen": images, "flops": 2 * images})
    curves = pd.DataFrame({"run": names, "images_seen": 500.5})
    began = time.process_time()
    assert flops_at(curves, runs, steps).unique().tolist() == [1001.0]
    assert time.process_time() - began < 1.5


def test_the_mean_goes_over_seeds_and_the_band_from_the_lowest_to_the_highest(study: Records) -> None:
    curves = mean_over_seeds(validation_curves(study, run_table(study)))
    dense = curves[curves["arm"] == "Dense (same depth)"].set_index("images_seen")
    assert set(dense["num_seeds"]) == {3}
    assert dense.loc[4800, ["loss", "loss_min", "loss_max"]].to_list() == pytest.approx([0.152, 0.151, 0.153])


def test_a_seed_that_was_not_measured_somewhere_does_not_bend_the_mean(
    tmp_path: Path, write_run: Callable[..., object]
) -> None:
    settings = {"routing": {"name": "dense"}, "train": {"images": 3200}}
    write_run(tmp_path / "a", settings, lambda images: 1.0, eval_images=[800, 1600, 3200])
    write_run(tmp_path / "b", settings | {"seed": 1}, lambda images: 3.0, eval_images=[1600, 3200])
    records = load_records([tmp_path])
    curves = mean_over_seeds(validation_curves(records, run_table(records)))
    assert curves[["images_seen", "loss"]].to_numpy().tolist() == [[1600, 2.0], [3200, 2.0]]


def test_smoothing_keeps_a_constant_and_its_length() -> None:
    assert smooth([2.0] * 7, 3).tolist() == [2.0] * 7
