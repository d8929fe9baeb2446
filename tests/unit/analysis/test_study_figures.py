"""The figures of experts, capacity, memory, time, quality and equal FLOPs show the stated values, or say why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes

from analysis.figures.registry import find_figure
from analysis.load_records import MissingDataError, load_records
from analysis.run_table import run_table
from analysis.style import Drawing
from experiments.config.memory import memory
from experiments.config.schema import RunConfig
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import find_runs
from experiments.records.writer import append_evaluations

WriteArms = Callable[..., Path]
Add = Callable[..., None]
PAIR: dict[str, Any] = {"dense": ({}, {"name": "dense"}, 1e-5), "ec": ({}, {"name": "expert_choice"}, 1.2e-5)}


def expert_choice(**routing: Any) -> dict[str, Any]:
    return {"name": "expert_choice", **routing}


EXPERTS: dict[str, Any] = {
    "dense": ({}, {"name": "dense"}, 1.0e-5),
    "switch": ({}, {"name": "switch", "num_experts": 8}, 1.1e-5),
    **{f"ec{number}": ({}, expert_choice(num_experts=number), 1e-5 + 1e-7 * number) for number in (4, 8, 16)},
}
GROUPS: dict[str, Any] = {
    f"{group} {factor}": (
        {}, expert_choice(num_experts=16, group_images=group, capacity_factor=factor), 1e-5 + 1e-6 * (factor + place)
    )
    for place, group in enumerate((1, 4, "batch"))
    for factor in (1.0, 2.0)
}  # fmt: skip


def drawn(name: str, folder: Path) -> Drawing:
    records = load_records([folder])
    return find_figure(name).draw(records, run_table(records))


def numbers(name: str, folder: Path) -> pd.DataFrame:
    return drawn(name, folder).numbers


def ticks(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def test_expert_scaling_has_the_loss_of_every_number_of_experts_and_of_dense(write_arms: WriteArms) -> None:
    frame = numbers("expert-scaling", write_arms(EXPERTS))
    ours = frame[frame["arm"] == "Expert choice"]
    assert ours["num_experts"].to_list() == [4, 8, 16]
    assert ours["loss"].to_list() == pytest.approx([0.2 - 9600 * (1e-5 + 1e-7 * number) for number in (4, 8, 16)])
    assert (ours["loss_max"] - ours["loss_min"]).to_list() == pytest.approx([0.002] * 3)
    assert frame[frame["num_experts"] == 0]["arm"].to_list() == ["Dense (same depth)"]
    assert "Switch" not in set(frame["arm"])  # one number of experts is no line


def test_expert_scaling_of_one_number_of_experts_is_refused(write_arms: WriteArms) -> None:
    with pytest.raises(MissingDataError, match=r"several numbers of experts in one setup\. .* ecdit sweep scaling"):
        drawn("expert-scaling", write_arms(PAIR, seeds=(0,)))


def test_capacity_has_a_line_for_each_factor_along_the_groups(write_arms: WriteArms) -> None:
    drawing = drawn("capacity", write_arms(GROUPS, seeds=(0,)))
    assert ticks(drawing.figure.axes[0]) == ["1", "4", "whole batch"]
    cells = drawing.numbers.set_index(["capacity_factor", "group_images"])["loss"]
    assert cells[1.0, "1"] == pytest.approx(0.2 - 9600 * 1.1e-5)
    assert cells[2.0, "whole batch"] == pytest.approx(0.2 - 9600 * 1.4e-5)
    assert len(cells) == 6


def test_capacity_of_one_group_is_drawn_against_the_factor(write_arms: WriteArms) -> None:
    of_one = {name: arm for name, arm in GROUPS.items() if name.startswith("4")}
    axes = drawn("capacity", write_arms(of_one, seeds=(0,))).figure.axes[0]
    assert ticks(axes) == ["1", "2"]
    assert axes.get_xlabel().startswith("Capacity $f_c$")


def test_capacity_of_one_group_has_a_line_for_each_router(write_arms: WriteArms) -> None:
    arms = {
        f"{name} {factor}": ({}, {"name": name, "group_images": 8, "capacity_factor": factor}, rate * factor)
        for name, rate in (("expert_choice", 1e-5), ("token_choice", 0.6e-5))
        for factor in (1.0, 2.0)
    }
    drawing = drawn("capacity", write_arms(arms, seeds=(0,)))
    lines = [line for line in drawing.figure.axes[0].lines if len(set(line.get_ydata())) == 2]
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx(list(arm["loss"])) for _, arm in drawing.numbers.groupby("arm", sort=False)
    ]
    assert len(lines) == 2


def test_capacity_of_one_cell_is_refused(write_arms: WriteArms) -> None:
    with pytest.raises(MissingDataError, match=r"several capacity factors or routing groups .* ecdit sweep capacity"):
        drawn("capacity", write_arms(PAIR, seeds=(0,)))


def test_memory_sets_the_recorded_peaks_beside_the_estimates(write_arms: WriteArms, measure_costs: Add) -> None:
    folder = write_arms(PAIR)
    measure_costs(folder)
    row = numbers("memory", folder).set_index("arm").loc["Expert choice"]
    record = next(run.read_run() for run in find_runs(folder) if "expert_choice" in run.run_json.read_text())
    assert row["training"] == 0.75
    assert row["estimate"] == pytest.approx(memory(RunConfig.model_validate(record.config), False).peak_gib)
    assert row[["inference", "inference_min", "inference_max"]].to_list() == pytest.approx([0.11, 0.10, 0.12])
    assert row["weights"] == pytest.approx(4 * record.params_total / 2**30)


def test_memory_of_small_models_is_shown_in_mib(write_arms: WriteArms, sampled: Callable[..., EvalRow]) -> None:
    folder = write_arms(PAIR, seeds=(0,))
    for run in find_runs(folder):
        append_evaluations(run, [sampled("inference_peak_memory_gib", 0.0625, num_samples=80, batch_images=16)])
    drawing = drawn("memory", folder)
    right = drawing.figure.axes[1]
    assert right.get_xlabel() == "Generating images (MiB)"
    assert [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"] == [64.0, 64.0]
    assert set(drawing.numbers["inference"]) == {0.0625}


def test_memory_of_an_accelerator_is_estimated_without_the_drivers_context(
    tmp_path: Path, write_run: Callable[..., Any]
) -> None:
    run = write_run(
        tmp_path / "a", {"train": {"images": 3200}}, lambda n: 1.0, eval_images=[3200], device="accelerator"
    )
    run.status_json.write_text(json.dumps(json.loads(run.status_json.read_text()) | {"peak_memory_gib": 2.0}))
    row = numbers("memory", tmp_path).iloc[0]
    peak = memory(RunConfig.model_validate(run.read_run().config), True).peak_gib
    assert row["estimate"] == pytest.approx(peak - 700 / 1024)
    assert row["training"] == 2.0


def test_memory_that_nobody_recorded_is_refused(write_arms: WriteArms) -> None:
    with pytest.raises(MissingDataError, match=r"No run has recorded the memory it took\."):
        drawn("memory", write_arms(PAIR, seeds=(0,)))


def test_loss_by_tenth_is_the_mean_and_its_change_is_paired_by_seed(write_arms: WriteArms, measure_costs: Add) -> None:
    folder = write_arms(PAIR, seeds=(0, 1))
    measure_costs(folder)
    frame = numbers("per-timestep-loss", folder).set_index(["arm", "tenth"])
    assert frame.loc[("Dense (same depth)", 3), ["t", "loss"]].to_list() == pytest.approx([0.35, 0.1305])
    ours = frame.loc[("Expert choice", 3)]
    assert ours["loss"] == pytest.approx(0.9 * 0.1305)
    assert ours[["change", "change_low", "change_high"]].to_list() == pytest.approx([-10, -10, -10])
    assert len(frame) == 20


def test_a_tenth_that_was_not_measured_breaks_the_line(write_arms: WriteArms, sampled: Callable[..., EvalRow]) -> None:
    folder = write_arms(PAIR, seeds=(0,))
    for run in find_runs(folder):
        rows = [sampled(f"val_loss_t{tenth}", 0.1, weights="raw") for tenth in (0, 1, 3)]
        append_evaluations(run, rows)
    drawing = drawn("per-timestep-loss", folder)
    line = max(drawing.figure.axes[0].lines, key=lambda line: len(line.get_xdata()))
    assert [value == value for value in line.get_ydata()] == [True, True, False, True] + [False] * 6
    assert set(drawing.numbers["tenth"]) == {0, 1, 3}


def test_loss_by_tenth_without_dense_says_so(write_arms: WriteArms, measure_costs: Add) -> None:
    folder = write_arms({"ec": PAIR["ec"]}, seeds=(0,))
    measure_costs(folder)
    right = drawn("per-timestep-loss", folder).figure.axes[1]
    assert "Dense (same depth)\nwas not run" in right.texts[0].get_text()


def test_loss_by_tenth_that_was_not_measured_is_refused(write_arms: WriteArms) -> None:
    with pytest.raises(MissingDataError, match=r"No run has its validation loss by tenths of t at its end\."):
        drawn("per-timestep-loss", write_arms(PAIR, seeds=(0,)))


def test_image_quality_has_every_measure_that_the_runs_have(
    write_arms: WriteArms, sampled: Callable[..., EvalRow]
) -> None:
    folder = write_arms(PAIR, seeds=(0, 1))
    for run in find_runs(folder):
        seed = run.read_run().config["seed"]
        append_evaluations(run, [sampled("fid", 30.0 + seed), sampled("clip-score", 0.25 + 0.02 * seed)])
    frame = numbers("paper-fig7", folder).set_index(["metric", "arm"])["value"]
    assert frame["fid", "Expert choice"] == pytest.approx(30.5)
    assert frame["clip-score", "Dense (same depth)"] == pytest.approx(0.26)
    assert set(frame.index.get_level_values(0)) == {"fid", "clip-score"}


def test_isoflop_shows_profiles_minima_and_laws(write_budgets: Callable[..., Path]) -> None:
    drawing = drawn("isoflop", write_budgets())
    frame = drawing.numbers
    assert frame.groupby("split").size().to_dict() == {"disagreement": 6, "law": 12, "minimum": 18, "profile": 24}
    foot = " ".join(" ".join(text.get_text() for text in drawing.figure.texts).split())
    assert (
        "Expert choice: N* grows as C to the 0.40 (0.40 to 0.40 over 3 budgets, 0.40 to 0.40 over configurations)"
        in foot
    )
    assert ticks(drawing.figure.axes[-1]) == ["1", "2", "4"]


def test_isoflop_of_edges_alone_says_so(write_budgets: Callable[..., Path]) -> None:
    drawing = drawn("isoflop", write_budgets(budgets=(1e11,), widths=(64, 96, 128)))
    assert drawing.numbers[drawing.numbers["split"] == "minimum"]["is_edge"].all()
    assert drawing.figure.axes[-1].texts[0].get_text() == "every minimum lies at an edge"


def test_the_printed_share_of_steps_stands_at_half_of_denses_images(write_arms: WriteArms) -> None:
    records = load_records([write_arms(PAIR, seeds=(0,))])
    entry = find_figure("paper-fig8")
    assert entry.draw_beside_paper is not None
    axes = entry.draw_beside_paper(records, run_table(records)).figure.axes[0]
    printed = [line for line in axes.lines if line.get_linestyle() == ":" and line.get_color() == "#D55E00"]
    assert [list(line.get_xdata()) for line in printed] == [[4.8, 4.8]]
