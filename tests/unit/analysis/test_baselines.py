"""Where a setup has dense models of several depths, every arm is measured from the one of its own depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.arm_table import arm_table
from analysis.baselines import baselines
from analysis.claims import SAME_T, claims
from analysis.compare import compare
from analysis.figures.registry import find_figure
from analysis.load_records import Records, load_records
from analysis.paper_claims import HALF_STEPS, THIRD_TIME, paper_claims
from analysis.run_table import run_table
from analysis.savings import savings
from experiments.records.run_folder import find_runs
from experiments.records.writer import append_evaluations

WriteArms = Callable[..., Path]
DEEP: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "dense 2": ({"num_layers": 2}, {"name": "dense"}, 1.0e-5),
    "dense 4": ({"num_layers": 4}, {"name": "dense"}, 1.2e-5),
    "wide 4": ({"num_layers": 4, "ffn_factor": 6.0}, {"name": "dense"}, 1.3e-5),
    "ec 2": ({"num_layers": 2}, {"name": "expert_choice"}, 1.5e-5),
    "ec 4": ({"num_layers": 4}, {"name": "expert_choice"}, 1.6e-5),
}
DENSE = {depth: f"Dense (same depth), {depth} layers" for depth in (2, 4)}
ROUTED = {depth: f"Expert choice ({depth} layers)" for depth in (2, 4)}
WIDE = "Dense (same activated)"
REACHED = {DENSE[2]: 9600, DENSE[4]: 9600, WIDE: 8861.5, ROUTED[2]: 6400, ROUTED[4]: 7200}
"""The images after which the straight lines come down to the final loss of dense of the same depth."""


@pytest.fixture
def depths(write_arms: WriteArms) -> Records:
    return load_records([write_arms(DEEP)])


def drawn(name: str, records: Records) -> pd.DataFrame:
    return find_figure(name).draw(records, run_table(records)).numbers


def test_an_arm_has_the_baseline_of_its_depth(depths: Records) -> None:
    table = run_table(depths)
    assert baselines(table) == {
        **{label: label for label in DENSE.values()}, **{ROUTED[depth]: DENSE[depth] for depth in (2, 4)},
        WIDE: DENSE[4],
    }  # fmt: skip
    shallow = table[table["arm"] != DENSE[4]]
    assert baselines(shallow) == {DENSE[2]: DENSE[2], ROUTED[2]: DENSE[2], WIDE: DENSE[2]}
    assert baselines(table[table["arm_kind"] == "sparse"]) == {}


def test_a_baseline_has_the_width_of_the_feed_forward_too(write_arms: WriteArms) -> None:
    arms = {
        f"{router} {factor}": ({"ffn_factor": factor}, {"name": router}, 1e-5)
        for router in ("dense", "expert_choice") for factor in (4.0, 2.0)
    }  # fmt: skip
    found = baselines(run_table(load_records([write_arms(arms, seeds=(0,))])))
    assert found["Expert choice (experts 2 wide, feed-forward 2 wide)"] == "Dense (same depth), feed-forward 2 wide"
    assert found["Expert choice (experts 4 wide, feed-forward 4 wide)"] == "Dense (same depth), feed-forward 4 wide"


def test_a_router_of_another_width_has_the_baseline_of_its_depth(write_arms: WriteArms) -> None:
    """Switch-DiT's experts are narrower, so that it activates as much as others."""
    arms = {"dense": ({}, "dense"), "routed": ({}, "expert_choice"), "narrow": ({"ffn_factor": 2.0}, "switch_dit")}
    runs = {name: (model, {"name": router}, 1e-5) for name, (model, router) in arms.items()}
    found = baselines(run_table(load_records([write_arms(runs, seeds=(0,))])))
    assert len(found) == 3
    assert set(found.values()) == {"Dense (same depth)"}


def test_images_to_dense_loss_are_counted_to_dense_of_the_same_depth(depths: Records) -> None:
    rows = arm_table(depths, run_table(depths)).set_index("arm")
    assert rows["images_to_dense_loss"].to_dict() == pytest.approx(REACHED, rel=5e-3)
    assert rows.loc[ROUTED[4], "times_sooner"] == pytest.approx(9600 / 7200, rel=5e-3)
    assert rows["baseline"].to_dict() == baselines(run_table(depths))


def test_loss_convergence_marks_the_loss_of_each_depth(depths: Records) -> None:
    numbers = drawn("loss-convergence", depths)
    reached = numbers[numbers["split"] == "reach"].set_index("arm")
    assert reached["images_seen"].to_dict() == pytest.approx(REACHED, rel=5e-3)
    assert reached["loss"].to_dict() == pytest.approx(
        {arm: 0.2 - 9600 * (1.0e-5 if "2 layers" in arm else 1.2e-5) for arm in REACHED}
    )


def test_an_arm_without_dense_of_its_depth_is_measured_from_none(write_arms: WriteArms) -> None:
    records = load_records([write_arms({name: DEEP[name] for name in ("dense 2", "ec 2", "ec 4")})])
    table = run_table(records)
    rows = arm_table(records, table).set_index("arm")
    assert rows.loc[ROUTED[2], "images_to_dense_loss"] == pytest.approx(6400, rel=5e-3)
    assert rows.loc[ROUTED[4], ["images_to_dense_loss", "times_sooner", "baseline"]].isna().all()
    for name in ("loss-convergence", "comparison"):
        figure = find_figure(name).draw(records, table).figure
        assert "no dense" in {text.get_text() for axes in figure.axes for text in axes.texts}


def test_inference_time_is_over_dense_of_the_same_depth(depths: Records) -> None:
    rows = drawn("inference-time", depths).set_index("arm")
    for depth in (2, 4):
        expected = rows.loc[ROUTED[depth], "flops_per_image"] / rows.loc[DENSE[depth], "flops_per_image"] - 1
        assert rows.loc[ROUTED[depth], "overhead_flops_per_image"] == pytest.approx(expected)
        assert rows.loc[DENSE[depth], "overhead_flops_per_image"] == 0


def test_losses_by_tenth_differ_from_dense_of_the_same_depth(
    write_arms: WriteArms, sampled: Callable[..., Any]
) -> None:
    folder = write_arms(DEEP, seeds=(0,))
    for run in find_runs(folder):
        config = run.read_run().config
        loss = config["model"]["num_layers"] * (1.0 if config["routing"]["name"] == "dense" else 0.9)
        append_evaluations(run, [sampled("val_loss_t0", loss, num_samples=64, weights="raw")])
    change = drawn("per-timestep-loss", load_records([folder])).set_index("arm")["change"]
    expected = {**dict.fromkeys([*DENSE.values(), WIDE], 0), **dict.fromkeys(ROUTED.values(), -10)}
    assert change.to_dict() == pytest.approx(expected)


def test_speeds_are_relative_to_dense_of_the_same_depth(write_arms: WriteArms) -> None:
    for depth, speed in ((2, 200.0), (4, 50.0)):
        arms = {name: arm for name, arm in DEEP.items() if name.endswith(str(depth))}
        folder = write_arms(arms, seeds=(0,), images_per_second=speed)
    records = load_records([folder])
    axes = find_figure("comparison").draw(records, run_table(records)).figure.axes[3]
    assert {float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == ">"} == {1.0}


def test_claims_are_about_dense_of_the_same_depth(depths: Records) -> None:
    table = run_table(depths)
    noise = 1e-4 * table["seed"] * (table["arm_kind"] == "sparse")
    table["val_loss_same_t"] = table["val_loss"] + 0.01 * table["model.num_layers"] + noise
    gaps = {claim.arm: claim.gap.mean for claim in claims(table) if claim.reference == SAME_T}
    assert gaps == pytest.approx(dict.fromkeys(ROUTED.values(), 1e-4))
    pairs = {(claim.arm, claim.reference) for claim in claims(table) if claim.reference in DENSE.values()}
    assert pairs == {(ROUTED[depth], DENSE[depth]) for depth in (2, 4)}


def test_unequal_compute_is_said_of_dense_of_the_same_depth(depths: Records) -> None:
    notes = [note for note in compare(depths).notes if note.startswith("FLOPs per image against")]
    assert len(notes) == 2
    for depth, note in zip((2, 4), notes, strict=True):
        assert note.startswith(f"FLOPs per image against {DENSE[depth]} are not equal: ")
        assert ROUTED[depth] in note
        assert ROUTED[6 - depth] not in note


def test_half_of_the_steps_are_those_of_dense_of_the_same_depth(depths: Records) -> None:
    found = [claim for claim in paper_claims(depths, run_table(depths)) if claim.form is HALF_STEPS]
    shares = {claim.setup.removeprefix("nano: "): claim.ours and claim.ours.mean for claim in found}
    assert shares == pytest.approx({ROUTED[2]: 6400 / 9600, ROUTED[4]: 7200 / 9600}, rel=5e-3)


def test_a_third_of_the_time_is_that_of_a_larger_dense_model_of_the_same_depth(write_arms: WriteArms) -> None:
    for preset, depth, seconds in (("nano", 2, 0.02), ("nano", 4, 0.01), ("micro", 2, 0.04), ("micro", 4, 0.08)):
        arms = {name: arm for name, arm in DEEP.items() if name in (f"dense {depth}", f"ec {depth}")}
        folder = write_arms(arms, presets=(preset,), inference_seconds=seconds)
    records = load_records([folder])
    found = [claim for claim in paper_claims(records, run_table(records)) if claim.form is THIRD_TIME]
    shares = {claim.setup.split(" against ")[0]: claim.ours and claim.ours.mean for claim in found}
    assert shares == pytest.approx({f"nano: {ROUTED[2]}": 0.02 / 0.04, f"nano: {ROUTED[4]}": 0.01 / 0.08})


def test_a_third_of_the_time_of_experts_of_another_width_is_that_of_dense_of_their_depth(write_arms: WriteArms) -> None:
    """The larger size has dense models of two depths, none of which is as wide as the experts."""
    narrow = {"narrow 4": ({"num_layers": 4, "ffn_factor": 2.0}, {"name": "expert_choice"}, 1.4e-5)}
    for preset, depth, seconds in (("nano", 2, 0.02), ("nano", 4, 0.01), ("micro", 2, 0.04), ("micro", 4, 0.08)):
        arms = {name: arm for name, arm in (DEEP | narrow).items() if name.endswith(str(depth)) and name != "wide 4"}
        folder = write_arms(arms, presets=(preset,), inference_seconds=seconds)
    records = load_records([folder])
    found = [claim for claim in paper_claims(records, run_table(records)) if claim.form is THIRD_TIME]
    shares = [claim.ours and claim.ours.mean for claim in found if "2 wide" in claim.setup]
    assert shares == [pytest.approx(0.01 / 0.08)]


def test_savings_are_against_dense_of_the_same_depth() -> None:
    rows = [
        {
            "arm": f"{kind} {depth}", "arm_kind": kind, "model.num_layers": depth, "size": 24, "seed": 0,
            "images_seen": images, "train_flops": images, "train_seconds": images,
            "val_loss": 1.0 / depth - 1e-5 * images * (2 if kind == "sparse" else 1),
        }
        for kind in ("dense_same_depth", "sparse") for depth in (2, 4) for images in (1000, 2000, 4000)
    ]  # fmt: skip
    found = savings(pd.DataFrame(rows), "size").query("axis == 'images_seen'").set_index("arm")["log_saving"]
    assert found.to_dict() == pytest.approx({"sparse 2": math.log(2), "sparse 4": math.log(2)})


def test_dense_arms_of_one_shape_are_each_their_own_baseline() -> None:
    about = {"model.num_layers": 2, "model.ffn_factor": 4.0}
    arms = {"d": "dense_same_depth", "e": "dense_same_depth", "s": "sparse"}
    table = pd.DataFrame([{"arm": arm, "arm_kind": kind, **about} for arm, kind in arms.items()])
    assert baselines(table) == {"d": "d", "e": "e", "s": "d"}


def test_a_table_that_lacks_a_column_counts_the_models_as_equal_in_it() -> None:
    table = pd.DataFrame({"arm": ["d", "e"], "arm_kind": ["dense_same_depth", "sparse"], "model.num_layers": [2, 2]})
    assert baselines(table) == {"d": "d", "e": "d"}
    assert baselines(table.assign(**{"model.num_layers": [2, 4]})) == {"d": "d"}
