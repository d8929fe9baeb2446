"""The figures of sampled metrics show the recorded values, means over seeds, under one set of conditions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.figures.registry import find_figure
from analysis.load_records import MissingDataError, Records, load_records
from analysis.run_table import run_table
from analysis.style import write_drawing
from experiments.errors import RecordError
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import RunDir, find_runs
from experiments.records.writer import append_evaluations
from tests.unit.analysis.test_figures import assert_legible, rendered

WriteArms = Callable[..., Path]
Evaluate = Callable[..., None]
Row = Callable[..., EvalRow]
SAMPLED = ("alignment", "quality-time", "quality-over-training", "guidance")
PAIR = {"dense": ({}, {"name": "dense"}, 1e-5), "ec": ({}, {"name": "expert_choice"}, 1.2e-5)}


def numbers(name: str, folder: Path) -> pd.DataFrame:
    records = load_records([folder])
    return find_figure(name).draw(records, run_table(records)).numbers


def of(frame: pd.DataFrame, metric: str, arm: str = "Expert choice") -> pd.DataFrame:
    return frame[(frame["metric"] == metric) & (frame["arm"] == arm)]


@pytest.fixture
def folder(write_arms: WriteArms, evaluate: Evaluate) -> Path:
    """Dense and expert choice, three seeds: of expert choice the middle one scores 0.54 at guidance 2."""
    path = write_arms(PAIR)
    evaluate(path)
    return path


@pytest.fixture
def two_runs(write_arms: WriteArms) -> tuple[RunDir, RunDir]:
    """Dense, then expert choice, of one seed, without any sampled metric."""
    dense, sparse = find_runs(write_arms(PAIR, seeds=(0,), inference_seconds=None))
    return dense, sparse


def test_alignment_is_the_mean_over_seeds_against_activated_parameters(folder: Path) -> None:
    frame = numbers("alignment", folder)
    seen, held_out = of(frame, "shapes-geneval").iloc[0], of(frame, "shapes-geneval-held-out").iloc[0]
    assert seen[["value", "low", "high"]].to_list() == pytest.approx([54, 52, 56])
    assert held_out["value"] == pytest.approx(39)
    assert (seen["num_seeds"], seen["spread"], seen["num_samples"], seen["guidance"]) == (3, "seeds", 512, 2.0)
    run = next(run for run in find_runs(folder) if "expert_choice" in run.run_json.read_text())
    assert seen["params_active"] == run.read_run().params_active


def test_one_seed_shows_the_interval_over_its_images(write_arms: WriteArms, evaluate: Evaluate) -> None:
    folder = write_arms(PAIR, seeds=(0,))
    evaluate(folder, held_out=False)
    frame = numbers("alignment", folder)
    assert set(frame["metric"]) == {"shapes-geneval"}
    row = of(frame, "shapes-geneval").iloc[0]
    assert row[["value", "low", "high"]].to_list() == pytest.approx([52, 48, 56])
    assert row["spread"] == "images"


def test_where_every_score_is_zero_the_axis_goes_up_from_there(two_runs: tuple[RunDir, RunDir], sampled: Row) -> None:
    for run in two_runs:
        append_evaluations(run, [sampled("shapes-geneval", 0.0, 0.0)])
    records = load_records([two_runs[0].path.parent])
    (axes,) = find_figure("alignment").draw(records, run_table(records)).figure.axes
    low, high = axes.get_ylim()
    assert high >= 1.0
    assert not [tick for tick in axes.get_yticks() if low <= tick < 0]


def test_quality_time_pairs_score_and_distance_with_the_time(folder: Path) -> None:
    frame = numbers("quality-time", folder)
    run = next(run for run in find_runs(folder) if "expert_choice" in run.run_json.read_text())
    seconds = 2e-9 * run.read_run().flops_per_image
    for metric, value in (("shapes-geneval", 54), ("frechet-shapes", 20 * 0.46)):
        row = of(frame, metric).iloc[0]
        assert row[["value", "seconds"]].to_list() == pytest.approx([value, seconds])


def test_quality_over_training_has_every_checkpoint_at_its_own_number_of_images(folder: Path) -> None:
    frame = numbers("quality-over-training", folder)
    scores = of(frame, "shapes-geneval")
    assert scores["images_seen"].to_list() == [1600, 4800, 8000]
    assert scores["value"].to_list() == pytest.approx([9, 27, 45])
    assert of(frame, "frechet-shapes")["value"].to_list() == pytest.approx([46, 46 / 3, 46 / 5])
    assert set(frame["num_samples"]) == {256}


def test_guidance_has_every_scale_and_no_divergence_of_dense(folder: Path) -> None:
    frame = numbers("guidance", folder)
    assert of(frame, "shapes-geneval")["guidance"].to_list() == [1, 2, 4]
    assert of(frame, "shapes-geneval")["value"].to_list() == pytest.approx([44, 54, 51])
    assert of(frame, "branch_divergence")["guidance"].to_list() == [2, 4]
    assert of(frame, "branch_divergence")["value"].to_list() == pytest.approx([0.1, 0.2])
    assert of(frame, "branch_divergence", "Dense (same depth)").empty


def test_one_scale_with_two_branches_is_still_shown(two_runs: tuple[RunDir, RunDir], sampled: Row) -> None:
    scores = [sampled("shapes-geneval", 0.5, guidance=scale) for scale in (1.0, 2.0)]
    append_evaluations(two_runs[1], [*scores, sampled("branch_divergence", 0.3)])
    divergence = of(numbers("guidance", two_runs[0].path.parent), "branch_divergence")
    assert divergence[["guidance", "value"]].to_numpy().tolist() == [[2.0, 0.3]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alignment", r"No run has shapes-geneval .* at its end\. Measure it with: ecdit evaluate RUNS"),
        (
            "quality-time",
            r"No run has shapes-geneval or .*caption-retrieval at its end\. Measure it with: ecdit evaluate",
        ),
        ("quality-over-training", r"at several points of its training\. .* ecdit train eval\.metric_images=256"),
        ("guidance", r"at several guidance scales at its end\. Measure it with: .* --guidance 1,2,4"),
        ("compute-map", r"No run has a compute map\. Measure it with: ecdit evaluate --metrics routing"),
        (
            "expert-classes",
            r"No run has its routing measured by class\. Measure it with: ecdit evaluate --metrics rout",
        ),
        ("specialization", r"No run has its routing measured on scenes\. Measure it with: ecdit evaluate --metrics ro"),
    ],
)
def test_nothing_measured_is_refused_with_the_command(name: str, message: str, study: Records) -> None:
    with pytest.raises(MissingDataError, match=message):
        find_figure(name).draw(study, run_table(study))


def test_scores_without_a_time_of_the_same_sampler_are_refused(two_runs: tuple[RunDir, RunDir], sampled: Row) -> None:
    for run in two_runs:
        time = sampled("inference_seconds_per_image", 0.1, steps=50)
        append_evaluations(run, [sampled("shapes-geneval", 0.5), time])
    message = r"with: ecdit evaluate --metrics inference-time --steps 24 --sampler euler --guidance 2 RUNS"
    with pytest.raises(MissingDataError, match=message):
        numbers("quality-time", two_runs[0].path.parent)


def test_a_time_with_guidance_on_in_another_interval_is_not_that_of_the_scores(
    two_runs: tuple[RunDir, RunDir], sampled: Row
) -> None:
    part = {"guidance_start": 0.3, "guidance_stop": 0.7, "guidance_channels": 2}
    for run in two_runs:
        append_evaluations(run, [sampled("shapes-geneval", 0.5, **part), sampled("inference_seconds_per_image", 0.1)])
    message = r"--sampler euler --guidance 2 --guidance-interval 0\.3,0\.7 --guidance-channels 2 RUNS"
    with pytest.raises(MissingDataError, match=message):
        numbers("quality-time", two_runs[0].path.parent)
    for run in two_runs:
        append_evaluations(run, [sampled("inference_seconds_per_image", 0.2, **part)])
    assert set(numbers("quality-time", two_runs[0].path.parent)["seconds"]) == {0.2}


def test_a_metric_that_one_setup_lacks_leaves_a_panel_that_says_so(write_arms: WriteArms, sampled: Row) -> None:
    folder = write_arms(PAIR, seeds=(0,), presets=("nano", "micro"), inference_seconds=None)
    for run in find_runs(folder):
        names = ("shapes-geneval", "frechet-shapes") if "nano" in run.path.name else ("shapes-geneval",)
        at = [(name, images) for name in names for images in (1600, 9600)]
        append_evaluations(run, [sampled(name, 0.5, images_seen=images) for name, images in at])
    records = load_records([folder])
    drawing = find_figure("quality-over-training").drawing(records, run_table(records))
    empty = [axes for axes in drawing.figure.axes if not axes.axison]
    assert [[text.get_text() for text in axes.texts] for axes in empty] == [["not measured"]]
    assert len(drawing.figure.axes) == 4
    assert set(of(drawing.numbers, "frechet-shapes")["model.name"]) == {"nano"}
    assert_legible(rendered(drawing.figure))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"num_samples": 64}, "num_samples of shapes-geneval: 512"),
        ({"weights": "raw"}, "weights of shapes-geneval: ema"),
        ({"steps": 50}, "steps of shapes-geneval: 24"),
        ({"seed": 3}, "seed of shapes-geneval: 0"),
    ],
)
def test_runs_measured_under_different_conditions_are_refused(
    other: dict[str, Any], difference: str, two_runs: tuple[RunDir, RunDir], sampled: Row
) -> None:
    append_evaluations(two_runs[0], [sampled("shapes-geneval", 0.5)])
    append_evaluations(two_runs[1], [sampled("shapes-geneval", 0.6, **other)])
    with pytest.raises(MissingDataError, match=f"Runs differ in {difference} in .*dense-s0"):
        numbers("alignment", two_runs[0].path.parent)


def test_runs_without_a_shared_scale_are_refused(two_runs: tuple[RunDir, RunDir], sampled: Row) -> None:
    for run, scale in zip(two_runs, (1.0, 4.0), strict=True):
        append_evaluations(run, [sampled("shapes-geneval", 0.5, guidance=scale)])
    with pytest.raises(MissingDataError, match=r"The runs share no guidance scale of shapes-geneval\."):
        numbers("alignment", two_runs[0].path.parent)


def test_times_of_different_devices_are_refused(two_runs: tuple[RunDir, RunDir], sampled: Row) -> None:
    for run, device in zip(two_runs, ("cpu", "accelerator"), strict=True):
        time = sampled("inference_seconds_per_image", 0.1, device=device)
        append_evaluations(run, [sampled("shapes-geneval", 0.5), time])
    with pytest.raises(RecordError, match="Runs differ in device of inference_seconds_per_image: cpu"):
        numbers("quality-time", two_runs[0].path.parent)


def test_most_images_under_shared_conditions_count(two_runs: tuple[RunDir, RunDir], sampled: Row) -> None:
    for run in two_runs:
        rows = [sampled("shapes-geneval", 0.9, num_samples=64), sampled("shapes-geneval", 0.5)]
        append_evaluations(run, [*rows, sampled("shapes-geneval", 0.8, num_samples=2048, weights="raw")])
    frame = numbers("alignment", two_runs[0].path.parent)
    assert frame["value"].to_list() == pytest.approx([50, 50])
    assert set(frame["num_samples"]) == {512}


def test_a_run_that_was_not_measured_is_said_at_the_foot(two_runs: tuple[RunDir, RunDir], sampled: Row) -> None:
    append_evaluations(two_runs[1], [sampled("shapes-geneval", 0.5)])
    records = load_records([two_runs[0].path.parent])
    figure = find_figure("alignment").draw(records, run_table(records)).figure
    assert any("Not measured: 1 of the runs" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize(("num_samples", "few"), [(8, True), (64, True), (65, False)])
def test_a_frechet_distance_of_too_few_images_is_said_at_the_foot(
    num_samples: int, few: bool, two_runs: tuple[RunDir, RunDir], sampled: Row
) -> None:
    for run in two_runs:
        append_evaluations(
            run,
            [
                sampled("shapes-geneval", 0.5, num_samples=num_samples),
                sampled("frechet-shapes", 9.0, num_samples=num_samples),
                sampled("inference_seconds_per_image", 0.1),
            ],
        )
    records = load_records([two_runs[0].path.parent])
    texts = [text.get_text() for text in find_figure("quality-time").draw(records, run_table(records)).figure.texts]
    word = f"frechet-shapes says little here: of {num_samples} images, no more than its 64 features"
    assert any(word in " ".join(text.split()) for text in texts) == few


@pytest.mark.parametrize("name", SAMPLED)
def test_the_same_records_give_the_same_bytes(name: str, folder: Path, tmp_path: Path) -> None:
    written = []
    for attempt in ("a", "b"):
        records = load_records([folder])
        drawing = find_figure(name).draw(records, run_table(records))
        written.append([path.read_bytes() for path in write_drawing(drawing, tmp_path / attempt, name)])
    assert written[0] == written[1]


def test_the_best_guidance_is_that_of_the_best_mean_and_an_edge_is_marked(
    tmp_path: Path, write_run: Callable[..., Any], sampled: Callable[..., Any]
) -> None:
    """The score is best at 2 in the mean of two seeds, at 2 and 4 in single ones; the distance falls up to the edge."""
    scores = {0: {1.0: 0.50, 2.0: 0.60, 4.0: 0.55}, 1: {1.0: 0.50, 2.0: 0.57, 4.0: 0.58}}
    for seed, by_scale in scores.items():
        settings = {"routing": {"name": "dense"}, "train": {"images": 9600}, "seed": seed}
        run = write_run(tmp_path / str(seed), settings, lambda n: 1.0, eval_images=[9600])
        rows = [sampled("shapes-geneval", score, guidance=scale) for scale, score in by_scale.items()]
        rows += [sampled("frechet-shapes", 10 - scale, guidance=scale) for scale in by_scale]
        append_evaluations(run, rows)
    records = load_records([tmp_path])
    drawing = find_figure("best-guidance").drawing(records, run_table(records))
    rows = drawing.numbers.set_index("metric")
    columns = ["value", "low", "high", "num_seeds", "is_edge"]
    assert rows.loc["shapes-geneval", columns].to_list() == [2.0, 2.0, 4.0, 2, False]
    assert rows.loc["frechet-shapes", columns].to_list() == [4.0, 4.0, 4.0, 2, True]
    assert rows.loc["shapes-geneval", "best"] == pytest.approx(58.5)
