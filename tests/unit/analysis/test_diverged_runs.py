"""A run that diverged is in no mean and in every table and figure, with what repeats it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from analysis.arm_table import arm_table, json_rows
from analysis.claims import claims
from analysis.compare import compare, comparison_markdown
from analysis.diverged_runs import diverged_table, divergence_note, divergence_texts
from analysis.export_tables import export_runs, final_tables
from analysis.figures.registry import find_figure
from analysis.load_records import Records, load_records
from analysis.report.diverged_rows import diverged_blocks
from analysis.report.document import Table
from analysis.run_table import run_table
from experiments.config.schema import RunConfig
from experiments.records.divergence import diverged_at
from experiments.records.record_types import Status
from experiments.training.diagnosis import Cause, nonfinite_error
from tests.unit.analysis.test_figures import assert_legible, rendered

REASON = "Not finite after 4,800 images: blocks.2.ffn (loss nan, gradient norm nan). Lower optim.learning_rate=0.002."
WriteArms = Callable[..., Path]
WriteRun = Callable[..., Any]


def add(folder: Path, write_run: WriteRun, name: str, settings: dict[str, Any], **given: Any) -> None:
    """A run of the study that diverged after 4,800 of 9,600 images, with its last validation at 3,200."""
    base = {"train": {"images": 9600}, "eval": {"every_images": 1600}}
    lost = {"state": "failed", "reason": REASON, "eval_images": [1600, 3200], "step_images": [1600, 3200, 4800]}
    write_run(folder / name, {**base, **settings}, lambda n: 0.3 - 1e-5 * n, **{**lost, **given})


@pytest.fixture
def folder(write_arms: WriteArms, write_run: WriteRun) -> Path:
    """Four arms of three seeds, and of expert choice a fourth seed that diverged; switch diverged in its only seed."""
    found = write_arms()
    add(found, write_run, "lost", {"routing": {"name": "expert_choice"}, "seed": 3})
    add(found, write_run, "alone", {"routing": {"name": "switch"}, "seed": 0})
    return found


@pytest.fixture
def records(folder: Path) -> Records:
    return load_records([folder])


def test_the_error_of_training_is_the_reason_that_is_recognised() -> None:
    error = nonfinite_error(RunConfig(), 12_345, Cause("blocks.1"), "loss nan")
    status = Status(state="failed", images_seen=12_345, images_total=20_000, heartbeat=0.0, reason=str(error))
    assert diverged_at(status) == 12_345
    assert diverged_at(status.model_copy(update={"reason": "lost a process"})) is None
    assert diverged_at(status.model_copy(update={"state": "done"})) is None
    assert diverged_at(status.model_copy(update={"reason": None})) is None
    router = nonfinite_error(RunConfig(), 12_345, Cause("blocks.1.ffn.router", "Correct the router."), "loss nan")
    assert diverged_at(status.model_copy(update={"reason": str(router)})) is None


def test_a_run_that_diverged_is_in_no_frame_of_finished_runs_and_is_listed(records: Records) -> None:
    assert len(records.runs) == 12
    for frame in (records.runs, records.steps, records.evals):
        assert not frame["run"].astype(str).str.contains("lost|alone").any()
    assert records.diverged is not None
    assert records.diverged.runs["diverged_at_images"].to_list() == [4800, 4800]
    assert set(records.diverged.evals["images_seen"]) == {1600, 3200}
    assert any(str(entry).endswith(f"lost: diverged at 9,600 of 9,600 images: {REASON}") for entry in records.left_out)


def test_the_means_tests_and_types_are_those_without_the_run(folder: Path, write_arms: WriteArms) -> None:
    with_lost = load_records([folder])
    without = load_records([path for path in sorted(folder.iterdir()) if path.name not in ("lost", "alone")])
    ours, theirs = run_table(with_lost), run_table(without)
    assert (
        ours[theirs.columns].sort_values("run", ignore_index=True).equals(theirs.sort_values("run", ignore_index=True))
    )
    assert sorted(map(str, claims(ours))) == sorted(map(str, claims(theirs)))


def test_its_row_says_its_arm_where_it_diverged_and_its_last_finite_loss(records: Records) -> None:
    rows = diverged_table(records).set_index("arm")
    assert rows.loc["Expert choice", ["setup", "seed", "diverged_at_images", "last_images_seen"]].to_list() == [
        "nano", 3, 4800, 3200,
    ]  # fmt: skip
    assert rows.loc["Expert choice", "last_loss"] == pytest.approx(0.3 - 0.032)
    assert rows.loc["Expert choice", "last_seconds"] == pytest.approx(32.0)


def test_the_arm_table_counts_it_and_keeps_an_arm_of_which_all_diverged(records: Records) -> None:
    rows = {row["arm"]: row for row in json_rows(arm_table(records, run_table(records)))}
    assert (rows["Expert choice"]["num_seeds"], rows["Expert choice"]["num_diverged"]) == (3, 1)
    assert rows["Expert choice"]["val_loss_mean"] == pytest.approx(0.2 - 1.5e-5 * 9600)
    assert (rows["Switch"]["num_seeds"], rows["Switch"]["num_diverged"], rows["Switch"]["val_loss_mean"]) == (
        0,
        1,
        None,
    )
    assert rows["Token choice"]["num_diverged"] == 0


@pytest.mark.parametrize("lost_bias", [False, True])
@pytest.mark.parametrize("finished_bias", [False, True])
def test_it_is_of_the_arm_of_its_seeds_whichever_runs_store_a_setting(
    lost_bias: bool, finished_bias: bool, write_arms: WriteArms, write_run: WriteRun
) -> None:
    """A setting at its default is stored by no run, whether it finished or diverged."""
    biases = {False, finished_bias}
    arms = {str(bias): ({}, {"name": "switch", "expert_bias": bias}, 1e-5) for bias in biases}
    found = write_arms(arms, seeds=(0, 1))
    add(found, write_run, "lost", {"routing": {"name": "switch", "expert_bias": lost_bias}, "seed": 2})
    records = load_records([found])
    rows = arm_table(records, run_table(records))
    counts = {arm: (seeds, lost) for arm, seeds, lost in rows[["arm", "num_seeds", "num_diverged"]].to_numpy()}
    several = len({*biases, lost_bias}) > 1
    assert counts == {
        f"Switch (expert bias {bias})" if several else "Switch": (2 * (bias in biases), int(bias == lost_bias))
        for bias in {*biases, lost_bias}
    }


def test_a_copy_of_a_run_that_diverged_is_not_another_one(folder: Path, write_run: WriteRun) -> None:
    lost = {"routing": {"name": "dense"}, "seed": 4}
    for placement in ("alternate", "all"):
        add(folder, write_run, f"lost-{placement}", lost | {"model": {"name": "nano", "sparse_layers": placement}})
    records = load_records([folder])
    rows = {row["arm"]: row for row in json_rows(arm_table(records, run_table(records)))}
    assert (rows["Dense (same depth)"]["num_seeds"], rows["Dense (same depth)"]["num_diverged"]) == (3, 1)
    assert sum("lost-" in entry.run for entry in records.left_out) == 2


def test_the_comparison_shows_the_count_and_says_which(records: Records) -> None:
    comparison = compare(records)
    page = comparison_markdown(comparison)
    assert "| Seeds | Diverged |" in page
    assert "| Switch |" in page
    note = "Diverged, and in no mean, test or fit: Switch (nano), seed 0, at 4,800 images; Expert choice (nano), seed 3"
    assert any(line.startswith(note) for line in comparison.notes)
    assert not any("0 seeds" in line for line in comparison.notes)


def test_without_such_a_run_nothing_is_shown(study: Records) -> None:
    assert diverged_table(study).empty
    assert divergence_note(diverged_table(study)) == ""
    assert "Diverged" not in comparison_markdown(compare(study))
    assert "Diverged" not in final_tables(study).markdown()
    assert diverged_blocks(diverged_table(study)) == []


def test_an_export_has_the_run_and_its_images(folder: Path, records: Records) -> None:
    exported = export_runs(folder).set_index("run")
    assert exported.loc["lost", ["state", "diverged_at_images"]].to_list() == ["failed", 4800]
    assert exported["diverged_at_images"].notna().sum() == 2
    page = final_tables(records).markdown()
    assert "## Diverged" in page
    assert "| nano | Expert choice | 3 | 0.002 | 4,800 | 9,600 | 0.2680 |" in page


def test_a_report_has_a_table_of_them(records: Records) -> None:
    (found,) = diverged_blocks(diverged_table(records))
    assert isinstance(found, Table)
    assert found.caption == "The 2 runs that diverged"


def with_retry(folder: Path, write_run: WriteRun, **given: Any) -> Records:
    settings = {"routing": {"name": "expert_choice"}, "seed": 3, "optim": {"learning_rate": 0.001}}
    finished = {"state": "done", "reason": None, "eval_images": None, "step_images": None}
    add(folder, write_run, "again", settings, retry_of="lost", **{**finished, **given})
    return load_records([folder])


def test_a_repetition_at_a_lower_rate_is_shown_and_is_a_setting_of_its_own(folder: Path, write_run: WriteRun) -> None:
    records = with_retry(folder, write_run)
    table = run_table(records)
    assert set(table["setup"]) == {"nano, optim.learning_rate=0.002", "nano, optim.learning_rate=0.001"}
    assert table.loc[table["retry_of"] == "lost", "setup"].to_list() == ["nano, optim.learning_rate=0.001"]
    text = (
        "Expert choice (nano, optim.learning_rate=0.002), seed 3, at 4,800 images, "
        "repeated at optim.learning_rate=0.001 by again (done)"
    )
    assert text in list(divergence_texts(diverged_table(records)))
    assert "| Repeats |" in final_tables(records).markdown()


def test_a_repetition_that_diverged_too_is_said(folder: Path, write_run: WriteRun) -> None:
    lost = {"state": "failed", "reason": REASON, "eval_images": [1600], "step_images": [1600]}
    texts = list(divergence_texts(diverged_table(with_retry(folder, write_run, **lost))))
    assert any(text.endswith("by again (which diverged too)") for text in texts)
    assert len(texts) == 3


def test_of_several_repetitions_the_last_that_finished_is_named(folder: Path, write_run: WriteRun) -> None:
    """One repetition names the run by its name, the others by its folder; the last one diverged too."""
    path = folder / "lost" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "by another name"}))
    settings = {"routing": {"name": "expert_choice"}, "seed": 3}
    finished = {"state": "done", "reason": None, "eval_images": None, "step_images": None}
    for name, of, given in (("r1", "by another name", finished), ("r2", "lost", finished), ("r3", "lost", {})):
        rate = {"optim": {"learning_rate": 0.001 / int(name[1])}}
        add(folder, write_run, name, settings | rate, retry_of=of, **given)
    found = diverged_table(load_records([folder])).set_index("name")["retried_by"].to_dict()
    assert found["by another name"] == "r2"
    assert found["r3"] == ""


def test_the_table_of_diverged_runs_can_be_changed_without_changing_the_next_one(records: Records) -> None:
    first = diverged_table(records)
    first["arm"] = "changed"
    assert "changed" not in set(diverged_table(records)["arm"])


def test_a_run_of_another_sweep_does_not_repeat_it(folder: Path, write_run: WriteRun, tmp_path: Path) -> None:
    settings = {"routing": {"name": "expert_choice"}, "seed": 3, "optim": {"learning_rate": 0.001}}
    finished = {"state": "done", "reason": None, "eval_images": None, "step_images": None, "retry_of": "lost"}
    add(tmp_path / "other", write_run, "again", settings, **finished)
    assert set(diverged_table(load_records([folder, tmp_path / "other"]))["retried_by"]) == {""}


def crosses(axes: Axes) -> list[tuple[float, float]]:
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines() if line.get_marker() == "x"]


def test_figures_mark_the_last_finite_loss_and_say_what_diverged(records: Records) -> None:
    table = run_table(records)
    for name in ("loss-convergence", "routing"):
        drawing = find_figure(name).drawing(records, table)
        axes = drawing.figure.axes[0]
        top = axes.get_ylim()[1]
        assert [x for x, _ in crosses(axes)] == pytest.approx([3.2, 3.2])
        assert [y for _, y in crosses(axes)] == pytest.approx([min(0.268, top)] * 2)
        lost = drawing.numbers[drawing.numbers["split"] == "diverged"]
        assert lost["loss"].to_list() == pytest.approx([0.268, 0.268])
        assert "Diverged, and in no mean, test or fit: Switch (nano), seed 0" in drawing.figure.get_supxlabel()
        assert_legible(rendered(drawing.figure))


def test_the_comparison_marks_each_row_by_the_runs_that_diverged(records: Records) -> None:
    drawing = find_figure("comparison").drawing(records, run_table(records))
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels[-1] == "Switch"
    assert sorted(labels[int(y)] for _, y in crosses(drawing.figure.axes[0])) == ["Expert choice", "Switch"]
