"""Smoothing removes the noise of single evaluations and no difference between seeds, and says which it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.figures.registry import find_figure
from analysis.load_records import Records, load_records
from analysis.run_table import run_table
from analysis.smoothed_losses import with_smoothed_losses

WriteRun = Callable[..., Any]
EVALS = [400 * n for n in range(1, 41)]


def noisy(folder: Path, write_run: WriteRun, of_evaluation: float, of_seed: float, seeds: int = 6) -> Records:
    """Runs that are off a power law by `of_evaluation` at each evaluation by itself, and by `of_seed` in the whole."""
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        whole = np.exp(random.normal(0, of_seed))
        noise = dict(zip(EVALS, np.exp(random.normal(0, of_evaluation, len(EVALS))), strict=True))
        settings = {"routing": {"name": "dense"}, "train": {"images": EVALS[-1]}, "seed": seed}
        write_run(
            folder / str(seed), settings, lambda n, whole=whole, noise=noise: whole * noise[n] * (n / 400) ** -0.3,
            eval_images=EVALS, step_images=EVALS,
        )  # fmt: skip
    return load_records([folder])


def test_noise_of_single_evaluations_is_removed_and_the_gain_is_measured(tmp_path: Path, write_run: WriteRun) -> None:
    records = noisy(tmp_path, write_run, of_evaluation=0.02, of_seed=0.0)
    table = run_table(records)
    after, gain = with_smoothed_losses(records, table)
    assert gain.spread_before == pytest.approx(table["val_loss"].std())
    assert gain.spread_after == pytest.approx(after["val_loss"].std())
    assert gain.spread_after < 0.8 * gain.spread_before
    assert after["val_loss"].mean() == pytest.approx(40**-0.3, rel=0.02)
    assert gain.num_smoothed == 6
    ratio = gain.spread_after / gain.spread_before
    assert f"the spread between seeds is {ratio:.2f} times what it was" in str(gain)


def test_what_whole_curves_differ_by_is_not_removed(tmp_path: Path, write_run: WriteRun) -> None:
    records = noisy(tmp_path, write_run, of_evaluation=0.002, of_seed=0.03)
    _, gain = with_smoothed_losses(records, run_table(records))
    assert gain.spread_before is not None
    assert gain.spread_after == pytest.approx(gain.spread_before, rel=0.1)


def test_one_seed_does_not_show_the_gain(tmp_path: Path, write_run: WriteRun) -> None:
    records = noisy(tmp_path, write_run, of_evaluation=0.02, of_seed=0.0, seeds=1)
    _, gain = with_smoothed_losses(records, run_table(records))
    assert gain.spread_before is None
    assert "one seed an arm does not show what it gains in noise" in str(gain)


def test_curves_without_noise_keep_their_losses(tmp_path: Path, write_run: WriteRun) -> None:
    records = noisy(tmp_path, write_run, of_evaluation=0.0, of_seed=0.03)
    table = run_table(records)
    after, gain = with_smoothed_losses(records, table)
    assert after["val_loss"].equals(table["val_loss"])
    assert (gain.change, gain.num_smoothed) == (0, 0)


def test_only_figures_of_fits_use_smoothed_losses_and_say_so(write_powers: Callable[..., Path]) -> None:
    records = load_records([write_powers()])
    table = run_table(records)
    foot = find_figure("scaling-law").drawing(records, table, smoothed=True).figure.get_supxlabel()
    fitted = " ".join(foot.split())
    assert "Laws are fitted to the ends of smoothed validation curves: 0 of 48 curves were smoothed" in fitted
    other = find_figure("routing").drawing(records, table, smoothed=True).figure.get_supxlabel()
    assert "smoothed" not in other
