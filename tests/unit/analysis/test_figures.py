"""Every figure shows its numbers, with units, and nothing lies over anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis.figures.registry import FIGURES, FigureEntry, find_figure
from analysis.load_records import MissingDataError, Records, load_records
from analysis.paper_values import SOURCES
from analysis.run_table import run_table
from analysis.style import Drawing, paper_style
from experiments.errors import EcditError

WriteArms = Callable[..., Path]
Add = Callable[..., None]
SEVERAL_EXPERTS = {
    "dense": ({}, {"name": "dense"}, 1e-5),
    "ec8": ({}, {"name": "expert_choice", "num_experts": 8}, 1.2e-5),
    "ec16": ({}, {"name": "expert_choice", "num_experts": 16}, 1.3e-5),
}
FOUR_ARMS = {
    "dense": ({}, {"name": "dense"}, 1e-5),
    "wide": ({"ffn_factor": 6.0}, {"name": "dense"}, 1e-5),
    "token_choice": ({}, {"name": "token_choice"}, 1.6e-5),
    "expert_choice": ({}, {"name": "expert_choice"}, 1.5e-5),
}
EIGHT_ARMS = {
    **FOUR_ARMS,
    **{f"ec{number}": ({}, {"name": "expert_choice", "num_experts": number}, 1.1e-5) for number in (4, 16)},
    **{router: ({}, {"name": router}, 1.1e-5) for router in ("switch", "shared_expert")},
}

CAPACITIES: dict[str, Any] = {
    f"groups of {group}, f_c {factor}": (
        {},
        {"name": "expert_choice", "num_experts": 16, "group_images": group, "capacity_factor": factor},
        1e-6 * (8 + 2 * (3 if group == "batch" else group) + factor),
    )
    for group in (1, 2, "batch")
    for factor in (1.0, 2.0)
}


FACTORS: dict[str, Any] = {
    f"{number} experts, f_c {factor}": (
        {},
        {"name": "expert_choice", "num_experts": number, "capacity_factor": factor},
        1e-6 * (8 + factor),
    )
    for number in (8, 16)
    for factor in (1.0, 2.0)
}
ONE_OF_EACH = {"dense": ({}, {"name": "dense"}, 1e-5), "ec": ({}, {"name": "expert_choice"}, 1.5e-5)}


def draw(name: str, records: Records) -> Drawing:
    return find_figure(name).draw(records, run_table(records))


def rendered(figure: Figure) -> Figure:
    with paper_style():
        FigureCanvasAgg(figure).draw()
    return figure


def touching(boxes: list[Bbox]) -> bool:
    return any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])


def boxes_of_legends(figure: Figure) -> list[Bbox]:
    return [legend.get_window_extent() for legend in figure.findobj(Legend)]


def boxes_of_titles(figure: Figure) -> list[Bbox]:
    texts = [(axes, text) for axes in figure.axes for text in axes.get_children() if isinstance(text, Text)]
    boxes = [(axes.get_window_extent(), text.get_window_extent()) for axes, text in texts if text.get_text()]
    return [box for panel, box in boxes if box.y0 >= panel.y1]


def boxes_of_tick_labels(axis: Axis) -> list[Bbox]:
    if not axis.axes.axison:
        return []
    low, high = sorted(axis.get_view_interval())
    labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [label.get_window_extent() for label in labels if label.get_visible() and label.get_text()]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """What several tests of this file use and none changes: records by study, and drawings by figure and study."""
    return {}


@pytest.fixture
def evaluated(
    made: dict[str, Any], write_arms: WriteArms, write_budgets: WriteArms, write_powers: WriteArms,
    evaluate: Add, map_routing: Add, measure_costs: Add,
) -> Callable[..., Records]:  # fmt: skip
    """Records of runs of which everything was measured."""

    def load(study: str) -> Records:
        if study not in made:
            made[study] = write(study)
        records: Records = made[study]
        return records

    def write(study: str) -> Records:
        if study == BUDGETS:
            return load_records([write_budgets(seeds=(0, 1))])
        if study == POWERS:
            return load_records([write_powers()])
        arms, seeds, presets = STUDIES[study]
        folder = write_arms(arms, seeds=seeds, presets=presets)
        for add in (evaluate, map_routing, measure_costs):
            add(folder)
        return load_records([folder])

    return load


@pytest.fixture
def drawn(made: dict[str, Any], evaluated: Callable[..., Records]) -> Callable[..., Drawing]:
    """The figure of a study, rendered."""

    def get(entry: FigureEntry, study: str) -> Drawing:
        if (key := f"{entry.name} of {study}") not in made:
            records = evaluated(study)
            made[key] = entry.draw(records, run_table(records), **FEW_RESAMPLES.get(entry.name, {}))
            rendered(made[key].figure)
        drawing: Drawing = made[key]
        return drawing

    return get


STUDIES: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[str, ...]]] = {
    "one size": (FOUR_ARMS, (0, 1, 2), ("nano",)),
    "three sizes": (SEVERAL_EXPERTS, (0, 1), ("nano", "micro", "mini")),
    "one seed of eight arms": (EIGHT_ARMS, (0,), ("nano", "micro")),
    "capacities": (CAPACITIES, (0, 1), ("nano",)),
    "factors alone": (FACTORS, (0, 1), ("nano", "micro", "mini")),
    "five sizes": (ONE_OF_EACH, (0,), ("nano", "micro", "mini", "S", "B")),
}
BUDGETS, POWERS = "budgets", "powers"
STUDIES_OF = {
    "isoflop": [BUDGETS],
    "scaling-law": [POWERS],
    "curve-collapse": ["three sizes", "five sizes"],
    "capacity": ["capacities", "factors alone"],
    "inference-time": ["one size", "three sizes", "one seed of eight arms", "five sizes"],
    "expert-scaling": ["three sizes", "one seed of eight arms"],
}
"""Of the figures that not every study can have."""
FEW_RESAMPLES = {"scaling-law": {"num_resamples": 20}}
USUAL_STUDIES = ["one size", "three sizes", "one seed of eight arms"]
DRAWN = [(entry, study) for entry in FIGURES.values() for study in STUDIES_OF.get(entry.name, USUAL_STUDIES)]
BESIDE_PAPER = [
    (entry, STUDIES_OF.get(entry.name, USUAL_STUDIES)[0])
    for entry in FIGURES.values()
    if entry.draw_beside_paper is not None
]


def named(value: object) -> str:
    return value.name if isinstance(value, FigureEntry) else str(value)


@pytest.mark.parametrize(("entry", "study"), DRAWN, ids=named)
def test_nothing_lies_over_anything_else_and_nothing_is_cut_off(
    entry: FigureEntry, study: str, drawn: Callable[..., Drawing]
) -> None:
    assert_legible(drawn(entry, study).figure)


@pytest.mark.parametrize(("entry", "study"), BESIDE_PAPER, ids=named)
def test_printed_values_lie_over_nothing_and_say_where_they_are_from(
    entry: FigureEntry, study: str, evaluated: Callable[..., Records], drawn: Callable[..., Drawing]
) -> None:
    records = evaluated(study)
    assert entry.draw_beside_paper is not None
    drawing = entry.draw_beside_paper(records, run_table(records))
    assert_legible(rendered(drawing.figure))
    said = " ".join(text.get_text() for text in drawing.figure.findobj(Text))
    assert any(source in said.replace("\n", " ") for source in SOURCES.values())
    pd.testing.assert_frame_equal(drawing.numbers, drawn(entry, study).numbers)


@pytest.mark.parametrize("name", ["alignment", "image-quality", "expert-scaling"])
def test_printed_routers_that_were_not_run_are_named(name: str, evaluated: Callable[..., Records]) -> None:
    records = evaluated("three sizes")  # without token choice
    drawing = find_figure(name).drawing(records, run_table(records), paper_values=True)
    assert any(text.get_text().startswith("Token choice") for text in drawing.figure.findobj(Text))


def assert_legible(figure: Figure) -> None:
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert not any(legend.overlaps(panel) for legend in boxes_of_legends(figure) for panel in panels)
    for axes in figure.axes:
        assert not touching(boxes_of_tick_labels(axes.xaxis))
        assert not touching(boxes_of_tick_labels(axes.yaxis))
    assert not touching([axes.xaxis.label.get_window_extent() for axes in figure.axes if axes.get_xlabel()])
    assert not touching([text.get_window_extent() for text in figure.texts if text.get_text()])
    assert not touching(boxes_of_titles(figure))
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) >= 0
    assert drawn.x1 <= width
    assert drawn.y1 <= height


@pytest.mark.parametrize("entry", FIGURES.values(), ids=named)
def test_every_axis_of_numbers_has_a_unit_and_no_text_is_small(
    entry: FigureEntry, drawn: Callable[..., Drawing]
) -> None:
    figure = drawn(entry, STUDIES_OF.get(entry.name, USUAL_STUDIES)[0]).figure
    labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label]
    assert labels
    assert all("(" in label or "/s" in label for label in labels)
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 6


def test_loss_convergence_marks_where_dense_is_reached(study: Records) -> None:
    numbers = draw("loss-convergence", study).numbers
    reached = numbers[numbers["split"] == "reach"].set_index("arm")
    assert reached["images_seen"].to_list() == pytest.approx([9600, 8000, 6000, 6400], rel=5e-3)
    assert reached["seconds"].to_list() == pytest.approx([96, 80, 60, 64], rel=5e-3)
    table = run_table(study).drop_duplicates("arm").set_index("arm")["train_flops_per_image"]
    expected = 1.6 * table["Dense (same depth)"] / table["Token choice"]
    assert reached.loc["Token choice", "times_sooner_flops"] == pytest.approx(expected, rel=5e-3)


def test_loss_convergence_without_dense_draws_the_curves_alone(write_arms: WriteArms) -> None:
    records = load_records([write_arms({"ec": ({}, {"name": "expert_choice"}, 1e-5)})])
    assert set(draw("loss-convergence", records).numbers["split"]) == {"training", "validation"}


def test_inference_time_sets_measured_beside_theoretical_overhead(write_arms: WriteArms) -> None:
    write_arms({"dense": ({}, {"name": "dense"}, 1e-5)}, inference_seconds=0.01)
    folder = write_arms({"ec": ({}, {"name": "expert_choice"}, 1.5e-5)}, inference_seconds=0.0125)
    records = load_records([folder])
    row = draw("inference-time", records).numbers.set_index("arm").loc["Expert choice"]
    costs = run_table(records).drop_duplicates("arm").set_index("arm")
    for cost in ("params_active", "flops_per_image"):
        expected = costs.loc["Expert choice", cost] / costs.loc["Dense (same depth)", cost] - 1
        assert row[f"overhead_{cost}"] == pytest.approx(expected)
    assert row["overhead_inference_seconds_per_image"] == pytest.approx(0.25)


def test_inference_time_without_dense_of_the_same_depth_says_so(write_arms: WriteArms) -> None:
    arms = {"wide": ({"ffn_factor": 6.0}, {"name": "dense"}, 1e-5), "ec": ({}, {"name": "expert_choice"}, 1e-5)}
    drawing = draw("inference-time", load_records([write_arms(arms, inference_seconds=0.01)]))
    assert drawing.numbers["overhead_flops_per_image"].isna().all()
    bars = drawing.figure.axes[1]
    assert (bars.get_xlabel(), list(bars.get_xticks())) == ("Overhead: Dense (same depth) was not run", [])


def test_inference_time_without_a_measurement_says_which_command_makes_one(write_arms: WriteArms) -> None:
    records = load_records([write_arms(seeds=(0,), inference_seconds=None)])
    with pytest.raises(MissingDataError, match="ecdit evaluate --metrics inference-time RUNS"):
        draw("inference-time", records)


def test_routing_shows_every_seed_its_mean_and_interval(study: Records) -> None:
    numbers = draw("routing", study).numbers
    end = numbers[numbers["split"] == "end"].set_index("arm")
    assert list(end.index) == ["Token choice", "Expert choice", "Dense (same activated)", "Dense (same depth)"]
    assert end.loc["Expert choice", "loss"] == pytest.approx(0.056)
    half = 4.302653 * 0.001 / 3**0.5
    assert end.loc["Expert choice", ["loss_low", "loss_high"]].to_list() == pytest.approx([0.056 - half, 0.056 + half])
    assert (numbers["split"] == "seed").sum() == 12


def test_routing_of_one_arm_is_refused(write_arms: WriteArms) -> None:
    records = load_records([write_arms({"dense": ({}, {"name": "dense"}, 1e-5)})])
    with pytest.raises(MissingDataError, match="there is no routing to compare"):
        draw("routing", records)


def test_an_unknown_figure_names_the_closest() -> None:
    with pytest.raises(EcditError, match=r"'rooting' is not a figure\. Did you mean 'routing'\?"):
        find_figure("rooting")


def test_names_and_aliases_are_unique_and_described() -> None:
    names = [name for entry in FIGURES.values() for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    papers = {f"paper-fig{number}" for number in range(3, 9)}
    assert {"loss-convergence", "inference-time", "routing", "specialization", "guidance", *papers} <= set(names)
    assert all(entry.description.endswith(".") for entry in FIGURES.values())
