"""`scaling-law`: the stated law comes back with its intervals, and what the runs cannot tell is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.text import Text

from analysis.figures.scaling_law import draw_scaling_law
from analysis.load_records import MissingDataError, Records, load_records
from analysis.run_table import run_table
from analysis.style import Drawing

WritePowers = Callable[..., Path]
ARMS = {"Expert choice", "Dense (same activated)"}


def draw(*folders: Path) -> Drawing:
    records = load_records(list(folders))
    return draw_scaling_law(records, run_table(records), num_resamples=30)


def of_split(drawing: Drawing, split: str) -> pd.DataFrame:
    return drawing.numbers[drawing.numbers["split"] == split].dropna(axis=1, how="all")


def said(drawing: Drawing) -> str:
    return " ".join(text.get_text() for text in drawing.figure.findobj(Text)).replace("\n", " ")


def test_the_stated_law_is_found_and_predicts_the_largest_runs(
    write_powers: WritePowers, powers: dict[str, float]
) -> None:
    drawing = draw(write_powers())
    found = of_split(drawing, "parameter").set_index(["arm", "parameter"])
    assert {arm for arm, _ in found.index} == ARMS
    for arm in ARMS:
        for name in ("E", "a"):
            row = found.loc[(arm, name)]
            assert row["value"] == pytest.approx(powers[name], rel=0.05)
            assert row["value_low"] <= row["value"] <= row["value_high"]
    errors = of_split(drawing, "prediction")["relative_error"]
    assert errors.abs().max() < 0.01


def test_every_drawn_number_is_in_the_numbers(write_powers: WritePowers, powers: dict[str, float]) -> None:
    folder = write_powers()
    drawing, table = draw(folder), run_table(load_records([folder]))
    flops = table["images_seen"] * table["train_flops_per_image"]
    assert set(of_split(drawing, "point")["train_flops"]) == set(flops)
    assert set(of_split(drawing, "point")["num_seeds"]) == {2}
    curve = of_split(drawing, "law")
    assert (curve["train_flops"].min(), curve["train_flops"].max()) == pytest.approx((flops.min(), flops.max()))
    expected = powers["E"] + powers["A"] * (curve["train_flops"] / 1e12) ** -powers["a"]
    assert curve["loss"].to_list() == pytest.approx(expected.to_list(), rel=5e-3)
    assert (curve["loss_low"] <= curve["loss_high"]).all()
    mean = of_split(drawing, "largest_out").query("parameter == 'mean_error'").set_index("arm")["value"]
    each = of_split(drawing, "prediction").groupby("arm")["relative_error"].mean()
    assert mean[list(ARMS)].to_list() == pytest.approx(each[list(ARMS)].to_list())


def test_runs_of_one_compute_are_refused_with_what_is_missing(study: Records) -> None:
    message = (
        r"No arm identifies L = A C\^-a; Dense \(same depth\): it needs at least 3 different amounts of compute "
        r"\(C\) and the runs have 1 \(.*\)\. Add runs of other amounts of compute\."
    )
    with pytest.raises(MissingDataError, match=message):
        draw_scaling_law(study, run_table(study))


def test_where_no_floor_shows_the_law_has_none(write_powers: WritePowers, powers: dict[str, float]) -> None:
    folder = write_powers(all_images=(400, 1600, 6400), widths=(64,), seeds=(0, 1))
    drawing = draw(folder)
    assert set(of_split(drawing, "parameter")["parameter"]) == {"A", "a"}
    slope = of_split(drawing, "parameter").query("parameter == 'a'")["value"]
    assert (slope < powers["a"]).all()  # a floor that is not in the law flattens it
    assert "no floor" in said(drawing)


def test_an_arm_without_a_law_has_points_and_a_reason(write_powers: WritePowers, write_run: Callable[..., Any]) -> None:
    folder = write_powers()
    settings = {"model": {"name": "nano"}, "routing": {"name": "switch"}, "train": {"images": 800, "batch_images": 16}}
    write_run(folder / "switch", settings, lambda n: 0.2, eval_images=[800], step_images=[800])
    drawing = draw(folder)
    assert "Switch" not in set(of_split(drawing, "law")["arm"])
    assert "Switch" in set(of_split(drawing, "point")["arm"])
    assert "has no law: it needs at least 3 different amounts of compute" in said(drawing)


def test_a_law_whose_smaller_runs_do_not_identify_it_is_not_predicted(write_powers: WritePowers) -> None:
    drawing = draw(write_powers(all_images=(400, 1600, 6400, 25600), widths=(64,), seeds=(0, 1, 2)))
    assert of_split(drawing, "prediction").empty
    assert "not known" in said(drawing)
    assert "is not predicted: it needs at least 4 different amounts of compute" in said(drawing)


def test_runs_of_another_learning_rate_have_their_own_laws(write_powers: WritePowers) -> None:
    other = write_powers(folder="other", optim={"learning_rate": 0.01})
    drawing = draw(write_powers(), other)
    conditions = set(of_split(drawing, "parameter")["condition"])
    assert conditions == {"optim.learning_rate=0.002", "optim.learning_rate=0.01"}
