"""Curves of one shape collapse, others do not, and the noise between seeds is the scale to judge it by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.curve_collapse import Collapse, collapses
from analysis.figures.registry import find_figure
from analysis.load_records import MissingDataError, Records, load_records
from analysis.run_table import run_table

WriteRun = Callable[..., Any]
LENGTHS = (3200, 6400, 12800)


def powers_of_length(
    folder: Path, write_run: WriteRun, power: Callable[[int], float], seed_noise: float = 0.0, seeds: int = 1
) -> Records:
    """Runs of three lengths whose loss is a power of the share of training; `power` gives that of each length."""
    for images in LENGTHS:
        for seed in range(seeds):
            settings = {"routing": {"name": "dense"}, "train": {"images": images}, "seed": seed}
            bend = -power(images) * (1 + seed_noise * (seed - (seeds - 1) / 2))
            evals = [images // 32 * n for n in range(1, 33)]
            write_run(
                folder / f"{images}-{seed}", settings,
                lambda n, images=images, bend=bend: images**-0.2 * (n / images) ** bend,
                eval_images=evals, step_images=evals,
            )  # fmt: skip
    return load_records([folder])


def found(records: Records) -> Collapse:
    (one,) = collapses(records, run_table(records))
    return one


def test_curves_of_one_shape_differ_by_nothing(tmp_path: Path, write_run: WriteRun) -> None:
    one = found(powers_of_length(tmp_path, write_run, lambda images: 0.3))
    assert one.deviation == pytest.approx(0, abs=1e-12)
    assert one.noise is None
    assert one.floor == 0.0  # a law without a floor fits as well
    assert one.curves["setup"].nunique() == 3
    ends = one.curves[one.curves["share"] == 1]
    assert ends["loss"].to_list() == pytest.approx([1, 1, 1])
    start = one.curves[one.curves["share"] == one.curves["share"].min()]
    assert start["loss"].to_list() == pytest.approx([0.2**-0.3] * 3, rel=0.01)


def test_curves_of_other_shapes_differ_by_what_their_formula_says(tmp_path: Path, write_run: WriteRun) -> None:
    powers = {3200: 0.2, 6400: 0.3, 12800: 0.4}
    one = found(powers_of_length(tmp_path, write_run, powers.__getitem__))
    shares = np.geomspace(0.2, 1, 37)[:-1]
    curves = np.stack([shares**-power for power in powers.values()])
    expected = np.sqrt(((curves.std(axis=0, ddof=1) / curves.mean(axis=0)) ** 2).mean())
    assert one.deviation == pytest.approx(expected, rel=0.01)


def test_the_noise_is_that_between_the_seeds_of_one_length(tmp_path: Path, write_run: WriteRun) -> None:
    one = found(powers_of_length(tmp_path, write_run, lambda images: 0.3, seed_noise=0.1, seeds=2))
    shares = np.geomspace(0.2, 1, 37)[:-1]
    curves = np.stack([shares**-0.285, shares**-0.315])
    expected = np.sqrt(((curves / curves.mean(axis=0) - 1) ** 2).sum(axis=0).mean())
    assert one.noise == pytest.approx(expected, rel=0.01)
    assert one.deviation == pytest.approx(0, abs=1e-9)
    assert "below the" in str(one)
    assert "between seeds" in str(one)


def test_the_figure_draws_every_curve_and_says_the_deviation(tmp_path: Path, write_run: WriteRun) -> None:
    records = powers_of_length(tmp_path, write_run, lambda images: 0.2 + images / 1e5)
    drawing = find_figure("curve-collapse").drawing(records, run_table(records))
    assert len(drawing.figure.axes[0].get_lines()) == 3
    numbers = drawing.numbers.set_index("split")
    assert f"3 curves differ by {numbers.loc['collapse', 'deviation']:.2%}" in drawing.figure.get_supxlabel()


def test_one_length_has_nothing_to_collapse_with(study: Records) -> None:
    with pytest.raises(MissingDataError, match="No arm has validation curves of two sizes or lengths to compare"):
        collapses(study, run_table(study))
