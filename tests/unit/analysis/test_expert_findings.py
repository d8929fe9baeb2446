"""DiT-MoE's findings about experts, on routings of which it is known what the experts look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.expert_findings import FINDINGS, ExpertFinding, expert_findings, finding_rows
from analysis.figures.registry import find_figure
from analysis.load_records import MissingDataError, load_records
from analysis.run_table import run_table
from experiments.evaluation.inference.expert_information import ExpertInformation
from experiments.records.routing_map_row import RoutingMapRow
from experiments.records.run_folder import find_runs
from experiments.records.writer import append_routing_maps

WriteArms = Callable[..., Path]
NUM_EXPERTS, NUM_TOKENS, NUM_IMAGES, TIMES = 8, 16, 60, (0.9, 0.7, 0.3, 0.1)
POSITION, TIME, LATE, BY_CLASS, DEPTH = "position", "time", "late", "class", "depth"
ARMS = {"choice": ({}, {"name": "token_choice", "num_experts": NUM_EXPERTS}, 0.3)}


def chosen(kind: str, layer: int, class_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The expert of each token [S, N, T]: at random, but for a half of tokens that follow what `kind` says."""
    shape = (len(TIMES), len(class_N), NUM_TOKENS)
    expert = generator.integers(NUM_EXPERTS, size=shape)
    place = {
        POSITION: np.arange(NUM_TOKENS),
        DEPTH: np.arange(NUM_TOKENS),
        TIME: np.arange(len(TIMES))[:, None, None],
        LATE: np.zeros((1, 1, 1), dtype=int),
        BY_CLASS: class_N[:, None],
    }.get(kind)
    if place is None or (kind == DEPTH and layer > 1):
        return expert
    follows = generator.random(shape) < 0.5
    if kind == LATE:  # one expert has most, but only at the end
        follows &= np.array([time < 0.5 for time in TIMES])[:, None, None]
    return np.where(follows, np.broadcast_to(place, shape) % NUM_EXPERTS, expert)


def rows_of(
    kind: str, seed: int = 0, layers: tuple[int, ...] = (1, 3, 5), num_images: int = NUM_IMAGES
) -> list[RoutingMapRow]:
    generator = np.random.default_rng(seed)
    class_N = generator.permutation(num_images) % NUM_EXPERTS
    classes = {"class": [f"class {number}" for number in class_N]}
    rows = []
    for layer in layers:
        expert_SNT = torch.from_numpy(chosen(kind, layer, class_N, generator))
        counts = ExpertInformation(num_images, NUM_EXPERTS, NUM_TOKENS)
        by_expert = torch.nn.functional.one_hot(expert_SNT, NUM_EXPERTS).bool()
        for time, by_expert_NTE in zip(TIMES, by_expert, strict=True):
            counts.add(time, range(num_images), by_expert_NTE)
        for at, time in enumerate((*TIMES, None)):
            load = by_expert[at if time else slice(None)].reshape(-1, NUM_EXPERTS).double().mean(dim=0).tolist()
            about = {
                "images_seen": 1600, "weights": "ema", "source": "samples", "num_images": num_images, "layer": layer,
                "time": time, "load": load, "entropy": 0.9, "dropped_share": 0.0, "experts_per_token": [0.0, 1.0],
            }  # fmt: skip
            more = counts.over_all_times(classes) if time is None else counts.at_time(time, classes)
            positions = {"load_by_position": [[1 / NUM_EXPERTS] * NUM_TOKENS] * NUM_EXPERTS} if time is None else {}
            rows.append(RoutingMapRow.model_validate(about | positions | more))
    return rows


@pytest.fixture
def measured(write_arms: WriteArms) -> Callable[..., list[ExpertFinding]]:
    """Writes the routing of runs of one arm, and tests the findings on it."""

    def write(kind: str, seeds: tuple[int, ...] = (0,), **settings: object) -> list[ExpertFinding]:
        folder = write_arms(ARMS, seeds=seeds)
        for seed, run in enumerate(find_runs(folder)):
            append_routing_maps(run, rows_of(kind, seed, **settings))  # type: ignore[arg-type]
        return expert_findings(run_table(load_records([folder])))

    return write


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize(
    ("kind", "verdicts"),
    [
        (POSITION, ["supported", None, None, None, "supported"]),
        (DEPTH, ["supported", None, "supported", None, "supported"]),
        (BY_CLASS, ["contradicted", "contradicted", None, None, "supported"]),
        (TIME, [None, "supported", None, None, "contradicted"]),
        (LATE, [None, "supported", None, "contradicted", "contradicted"]),
    ],
)
def test_the_verdicts_are_those_of_what_the_experts_look_at(
    kind: str, verdicts: list[str | None], seeds: tuple[int, ...], measured: Callable[..., list[ExpertFinding]]
) -> None:
    """None stands for what is truly 0, where one test in twenty finds something."""
    found = measured(kind, seeds)
    assert [each.form for each in found] == list(FINDINGS)
    known = [each.verdict for each, verdict in zip(found, verdicts, strict=True) if verdict is not None]
    assert known == [verdict for verdict in verdicts if verdict is not None]
    assert {each.over for each in found} == {"3 seeds" if len(seeds) == 3 else "60 images of nano-choice-s0"}
    assert [row["verdict"] for row in finding_rows(found)] == [each.verdict for each in found]


def test_experts_that_choose_at_random_say_nothing_however_few_the_images() -> None:
    """Without the jackknife the information about positions would be biased by several standard errors."""
    from analysis.expert_findings import Estimate

    inside, values, plain = 0, [], []
    for seed in range(60):
        recorded = np.array(rows_of("none", seed, layers=(1,), num_images=20)[-1].position_information)
        at = Estimate.of(recorded).interval()
        assert at.low is not None
        assert at.high is not None
        inside += at.low <= 0 <= at.high
        values.append(at.mean)
        plain.append(recorded[0])
    error = np.std(values) / np.sqrt(60)
    assert abs(np.mean(values)) < 4 * error
    assert np.mean(plain) > 10 * error
    assert inside >= 50  # nominal 57 of 60


def test_depth_needs_several_layers(measured: Callable[..., list[ExpertFinding]]) -> None:
    by_depth = measured(POSITION, layers=(1,))[2]
    assert (by_depth.verdict, by_depth.reason) == ("not testable", "it has one routed layer")


def test_an_interval_needs_several_images(measured: Callable[..., list[ExpertFinding]]) -> None:
    few = measured(POSITION, num_images=4)
    assert {(each.verdict, each.reason) for each in few} == {("not testable", "too few images for an interval")}


def test_a_router_that_fills_all_experts_alike_is_not_tested_by_time(write_arms: WriteArms) -> None:
    folder = write_arms(ARMS, seeds=(0,))
    even = [row.model_copy(update={"load": [1 / NUM_EXPERTS] * NUM_EXPERTS}) for row in rows_of(POSITION)]
    append_routing_maps(next(iter(find_runs(folder))), even)
    found = expert_findings(run_table(load_records([folder])))
    reasons = {each.form.finding[:2]: each.reason for each in found if each.verdict == "not testable"}
    assert reasons == {"1.": "the router fills all experts alike", "3.": "the router fills all experts alike"}


def test_records_of_earlier_versions_are_read_and_not_tested(
    write_arms: WriteArms, map_routing: Callable[..., None]
) -> None:
    folder = write_arms(ARMS, seeds=(0,))
    map_routing(folder, load_by_class=None)
    records = load_records([folder])
    table = run_table(records)
    assert expert_findings(table) == []
    assert len(find_figure("specialization").draw(records, table).numbers) > 0
    with pytest.raises(MissingDataError, match="No run has its routing measured by class"):
        find_figure("expert-classes").draw(records, table)


def renamed(rows: list[RoutingMapRow], num_classes: int) -> list[RoutingMapRow]:
    """The same rows with so many classes of long names."""
    found = []
    for row in rows:
        loads = {f"class of a long name {n:03d}": [1 / NUM_EXPERTS] * NUM_EXPERTS for n in range(num_classes)}
        found.append(row.model_copy(update={"load_by_class": {"class": loads}}))
    return found


@pytest.mark.parametrize("num_classes", [1, 3, 1000])
def test_names_of_classes_never_overlap_and_cells_are_those_recorded(num_classes: int, write_arms: WriteArms) -> None:
    arms = {**ARMS, "expert": ({}, {"name": "expert_choice", "num_experts": NUM_EXPERTS}, 0.3)}
    folder = write_arms(arms, seeds=(0,))
    for run in find_runs(folder):
        append_routing_maps(run, renamed(rows_of(POSITION), num_classes))
    records = load_records([folder])
    drawing = find_figure("expert-classes").draw(records, run_table(records))
    assert set(drawing.numbers["times_even_share"]) == {1.0}
    assert drawing.numbers["class"].nunique() == num_classes
    FigureCanvasAgg(drawing.figure).draw()
    for axes in drawing.figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])


def test_the_cells_are_the_share_of_a_class_over_the_even_share(write_arms: WriteArms) -> None:
    folder = write_arms(ARMS, seeds=(0,))
    rows = rows_of(BY_CLASS)
    append_routing_maps(next(iter(find_runs(folder))), rows)
    records = load_records([folder])
    numbers: pd.DataFrame = find_figure("expert-classes").draw(records, run_table(records)).numbers
    assert numbers["layer"].unique().tolist() == [1, 5]
    assert numbers["t"].dropna().unique().tolist() == [0.9, 0.1]
    whole = next(row for row in rows if row.layer == 1 and row.time is None)
    cells = numbers[(numbers["layer"] == 1) & numbers["t"].isna() & (numbers["class"] == "class 2")]
    assert whole.load_by_class is not None
    wanted = np.array(whole.load_by_class["class"]["class 2"]) * NUM_EXPERTS
    assert cells["times_even_share"].to_numpy() == pytest.approx(wanted)
    assert cells["times_even_share"].idxmax() == cells.index[2]
