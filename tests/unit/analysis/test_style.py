"""One marker per size, the same bytes for the same numbers. Colours of routers are tested in `test_router_looks.py`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.style import (
    SIZE_MARKERS,
    Drawing,
    line_style,
    log_axis,
    lowest_to_highest,
    paper_style,
    router_color,
    scaled,
    write_drawing,
)
from experiments.config.presets import PRESETS
from experiments.errors import StorageError


def drawing() -> Drawing:
    with paper_style():
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1], [1, 0])
    return Drawing(figure, pd.DataFrame({"x": [0, 1], "y": [1, 0]}))


def test_every_preset_has_its_own_marker() -> None:
    assert set(SIZE_MARKERS) == set(PRESETS)
    assert len(set(SIZE_MARKERS.values())) == len(PRESETS)


def test_arms_of_a_router_share_its_colour_and_differ_in_dashes() -> None:
    styles = [line_style("expert_choice", variant) for variant in range(5)]
    assert {style["color"] for style in styles} == {router_color("expert_choice")}
    assert len({str(style["linestyle"]) for style in styles}) == 5


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_drawing(drawing(), tmp_path / "a", "figure")
    second = write_drawing(drawing(), tmp_path / "b", "figure")
    assert [path.suffix for path in first] == [".png", ".svg", ".csv"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_png_has_200_dots_per_inch(tmp_path: Path) -> None:
    png, _, csv = write_drawing(drawing(), tmp_path, "figure")
    with Image.open(png) as image:
        assert image.size == (400, 200)
    assert csv.read_text() == "x,y\n0,1\n1,0\n"


def test_a_users_own_style_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    before = write_drawing(drawing(), tmp_path / "a", "figure")[0].read_bytes()
    monkeypatch.setitem(mpl.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(mpl.rcParams, "savefig.dpi", 30)
    assert write_drawing(drawing(), tmp_path / "b", "figure")[0].read_bytes() == before


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file: file exists\. .* or choose another folder"):
        write_drawing(drawing(), tmp_path / "file", "figure")


def test_a_logarithmic_axis_always_has_labelled_ticks() -> None:
    for values in ([9.0, 11.0], [8.0, 40.0], [0.1, 900.0]):
        with paper_style():
            axes = Figure(figsize=(2, 2)).subplots()
            axes.plot(values, [0, 1])
            log_axis(axes, "x", pd.Series(values))
            low, high = axes.get_xlim()
            labelled = [at for at in axes.get_xticks() if low <= at <= high]
        assert 2 <= len(labelled) <= 6


@pytest.mark.parametrize(
    ("largest", "unit", "expected"),
    [
        (9600, "images", (1e3, "thousands")),
        (4.1e12, "FLOP", (1e12, "TFLOP")),
        (3e15, "FLOP", (1e15, "PFLOP")),
        (100, "s", (1.0, "s")),
        (40_000, "s", (3600.0, "h")),
        (340_000, "parameters", (1e3, "thousands")),
        (9.7e10, "parameters", (1e9, "billions")),
    ],
)
def test_axes_have_si_units(largest: float, unit: str, expected: tuple[float, str]) -> None:
    assert scaled(largest, unit) == expected


@pytest.mark.parametrize(
    ("counts", "words"), [([3, 3], "3 seeds"), ([2, 3, 3], "2 to 3 seeds"), ([1, 3], "1 to 3 seeds")]
)
def test_a_legend_says_how_many_seeds_there_are_of_every_arm(counts: list[int], words: str) -> None:
    assert lowest_to_highest(pd.Series(counts)) == f"Lowest to highest of {words}"
