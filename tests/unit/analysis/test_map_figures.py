"""Compute maps and specialization show the recorded maps, of the run that stands for its router."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.figures.compute_map import draw_compute_map
from analysis.figures.registry import find_figure
from analysis.load_records import MissingDataError, Records, load_records
from analysis.maps import as_square, spread
from analysis.run_table import run_table
from analysis.style import Drawing, write_drawing
from experiments.errors import RecordError
from experiments.records.compute_map import ComputeMap
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import RunDir, find_runs
from experiments.records.writer import append_evaluations

WriteArms = Callable[..., Path]
MapRouting = Callable[..., None]
MakeMap = Callable[..., ComputeMap]
RISING = 2 * np.arange(1, 9) / 9
"""Times the even share of each of 8 experts whose load grows evenly."""


def draw(name: str, folder: Path) -> Drawing:
    records = load_records([folder])
    return find_figure(name).draw(records, run_table(records))


def foot_line(folder: Path, label: str) -> str:
    """What the foot of `specialization` says about a router, without line breaks."""
    foot = draw("specialization", folder).figure.get_supxlabel().replace("\n", " ")
    return foot.partition(f"{label}: ")[2].partition("choice: ")[0]


@pytest.fixture
def folder(write_arms: WriteArms, map_routing: MapRouting) -> Path:
    path = write_arms(seeds=(0,))
    map_routing(path)
    return path


def test_a_compute_map_shows_means_and_single_layers(make_compute_map: MakeMap) -> None:
    given = make_compute_map(num_images=2)
    numbers = draw_compute_map(given, "title").numbers
    means = numbers[numbers["layer"].isna() & (numbers["image"] == 0)]
    assert means["experts"].to_list() == pytest.approx(given.mean_BT[0].tolist())
    assert means["t"].isna().all()
    one = numbers[(numbers["image"] == 1) & (numbers["layer"] == 3) & np.isclose(numbers["t"], 0.6)]
    assert one["experts"].to_list() == given.experts_BKNT[1, 1, 2].tolist()
    assert one.iloc[9][["row", "column"]].to_list() == [1, 1]
    assert set(numbers["caption"]) == {"a red circle left of a blue square", "two green hearts"}


@pytest.mark.parametrize("caption", ["many words " * 15, "Donaudampfschiff" * 12, "$5 and $6", "_" * 200])
def test_captions_of_any_length_lie_over_nothing(caption: str, make_compute_map: MakeMap) -> None:
    given = make_compute_map(num_images=3, num_layers=14)
    long = ComputeMap(**{**vars(given), "captions": (caption,) * 3})
    figure = draw_compute_map(long, caption).figure
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_sample_draws_every_image_and_the_paper_six(folder: Path, make_compute_map: MakeMap) -> None:
    for run in find_runs(folder):
        make_compute_map(num_images=8).save(run.compute_map)
    assert draw("compute-map", folder).numbers["image"].nunique() == 6
    assert draw_compute_map(make_compute_map(num_images=8)).numbers["image"].nunique() == 8


def test_the_map_of_expert_choice_is_drawn_and_its_run_named(folder: Path) -> None:
    title = draw("compute-map", folder).figure.texts[0].get_text()
    assert title == "Expert choice, 9,600 training images: nano-expert_choice-s0"


def test_a_damaged_map_is_refused(folder: Path) -> None:
    for run in find_runs(folder):
        run.samples.mkdir(exist_ok=True)
        run.compute_map.write_bytes(b"PK")
    with pytest.raises(RecordError, match=r"compute_map\.npz is damaged"):
        draw("compute-map", folder)


def test_tokens_that_make_no_square_are_refused() -> None:
    with pytest.raises(RecordError, match="A routing map of 60 tokens cannot be drawn, because it is no square"):
        as_square([1.0] * 60)


def test_specialization_is_the_multiple_of_the_even_share(folder: Path) -> None:
    numbers = draw("specialization", folder).numbers
    assert set(numbers["router"]) == {"expert_choice", "token_choice"}
    mine = numbers[(numbers["router"] == "expert_choice") & (numbers["layer"] == 5)]
    by_time = mine[mine["panel"] == "time"].pivot(index="t", columns="expert", values="times_even_share")
    assert by_time.loc[0.9].to_list() == pytest.approx(RISING)
    assert by_time.loc[0.5].to_list() == pytest.approx([1] * 8)
    by_kind = mine[mine["kind"] == "two_object"].sort_values("expert")
    assert by_kind["times_even_share"].to_list() == pytest.approx(np.roll(RISING, 1))
    at_last = mine[(mine["position"] == 15)].sort_values("expert")
    assert at_last["times_even_share"].to_list() == pytest.approx(np.roll(RISING, 1))
    objects = mine[mine["tokens"] == "object"].sort_values("t")
    assert objects["experts_per_token"].to_list() == pytest.approx([2.9, 2.5, 2.1])


def test_one_router_shows_three_layers_and_two_routers_two(folder: Path) -> None:
    assert draw("specialization", folder).numbers["layer"].unique().tolist() == [1, 5]
    alone = folder / "nano-expert_choice-s0"
    assert draw("specialization", alone).numbers["layer"].unique().tolist() == [1, 3, 5]


def test_panels_that_were_not_measured_say_so(write_arms: WriteArms, map_routing: MapRouting) -> None:
    folder = write_arms({"ec": ({}, {"name": "expert_choice"}, 1e-5)}, seeds=(0,))
    map_routing(folder, layers=(1,), load_by_position=None, load_by_kind=None, object_experts=None)
    drawing = draw("specialization", folder)
    texts = [text.get_text() for axes in drawing.figure.axes for text in axes.texts]
    assert texts == ["not measured"] * 3
    assert set(drawing.numbers["panel"]) == {"time", "tokens"}


def test_a_measurement_along_samples_is_none_on_scenes(write_arms: WriteArms, map_routing: MapRouting) -> None:
    folder = write_arms(seeds=(0,))
    for run in find_runs(folder):
        along_path = {"source": "samples", "load_by_position": None} if "token" in run.path.name else {}
        map_routing(run.path, **along_path)
    assert set(draw("specialization", folder).numbers["router"]) == {"expert_choice"}


def test_a_measurement_along_samples_by_position_and_class_takes_the_place_of_scenes(
    write_arms: WriteArms, map_routing: MapRouting
) -> None:
    folder = write_arms({"ec": ({}, {"name": "expert_choice"}, 1e-5)}, seeds=(0,))
    classes = {f"class {number}": [1 / 8] * 8 for number in range(40)}
    map_routing(folder, layers=(1,), source="samples", load_by_kind=classes)
    drawing = draw("specialization", folder)
    assert set(drawing.numbers["kind"].dropna()) == set(classes)
    names = [tick.get_text() for axes in drawing.figure.axes for tick in axes.get_xticklabels()]
    assert len([name for name in names if name.startswith("class")]) == 8
    assert "sampled images" in foot_line(folder, "Expert choice")


def test_lines_that_cannot_be_read_are_counted_at_the_foot(folder: Path) -> None:
    with (folder / "nano-token_choice-s0" / "routing_maps.jsonl").open("a") as file:
        file.write('{"layer": 1}\n{cut\n')
    assert "Lines that could not be read: 2." in foot_line(folder, "Token choice")


def test_the_ratio_of_objects_to_background_stands_at_the_foot(folder: Path, sampled: Callable[..., EvalRow]) -> None:
    run = RunDir(folder / "nano-expert_choice-s0")
    append_evaluations(run, [sampled("object_compute_ratio", value, 0.1) for value in (1.1, 1.25)])
    assert "background: 1.250 (95% interval 1.150 to 1.350)." in foot_line(folder, "Expert choice")
    assert "interval" not in foot_line(folder, "Token choice")


def test_experts_that_are_filled_alike_are_said_to_be(write_arms: WriteArms, map_routing: MapRouting) -> None:
    folder = write_arms(seeds=(0,))
    map_routing(folder / "nano-expert_choice-s0", load=[0.125] * 8, load_by_kind={"colors": [0.125] * 8})
    map_routing(folder / "nano-token_choice-s0")
    assert "All experts are filled alike" in foot_line(folder, "Expert choice")
    assert "filled alike" not in foot_line(folder, "Token choice")


def test_the_newest_measurement_counts(folder: Path, map_routing: MapRouting) -> None:
    map_routing(folder, object_experts=7.0)
    numbers = draw("specialization", folder).numbers
    assert set(numbers.loc[numbers["tokens"] == "object", "experts_per_token"]) == {7.0}


@pytest.mark.parametrize("name", ["compute-map", "specialization"])
def test_the_same_maps_give_the_same_bytes(name: str, folder: Path, tmp_path: Path) -> None:
    first = write_drawing(draw(name, folder), tmp_path / "a", name)
    second = write_drawing(draw(name, folder), tmp_path / "b", name)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize(("number", "most", "expected"), [(9, 3, [0, 4, 8]), (2, 4, [0, 1]), (7, 1, [3]), (1, 4, [0])])
def test_spread_has_both_ends(number: int, most: int, expected: list[int]) -> None:
    assert spread(number, most) == expected


def test_dense_runs_alone_have_no_map(study: Records) -> None:
    table = run_table(study)
    dense = table[table["routing.name"] == "dense"]
    with pytest.raises(MissingDataError, match="No run has a compute map"):
        find_figure("compute-map").draw(study, dense)
