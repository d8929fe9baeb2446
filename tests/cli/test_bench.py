"""`ecdit bench`: each measure has its numbers, and a mistake its line. How large they are is not for a test."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from ecdit_cli.app import run
from experiments.benchmarks.command_start import LIMIT_SECONDS
from experiments.config.budget import budget
from experiments.config.overrides import load_config
from tests.training_runs import environment

DROPLESS = "dropless shared_expert"
SMALL = ("model=nano", "model.width=32", "model.num_layers=2", "train.batch_images=8")


def rows_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, float]]:
    assert run(["bench", *arguments, "--json"]) == 0
    rows: list[dict[str, float]] = json.loads(capsys.readouterr().out)
    return rows


@pytest.fixture(scope="module")
def train_rows() -> list[dict[str, float]]:
    """Measures one step of each model with `ecdit bench train`. The rows are not to be changed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert run(["bench", "train", *SMALL, "--steps", "1", "--clock", "cpu", "--json"]) == 0
    rows: list[dict[str, float]] = json.loads(printed.getvalue())
    return rows


def test_train_has_the_shares_of_every_router(train_rows: list[dict[str, float]]) -> None:
    rows = [row for row in train_rows if "what" not in row]
    assert [row["routing"] for row in rows] == ["dense", "expert_choice", "token_choice"]
    for row in rows:
        assert 0 < row["compute_share"] < 1
        assert row["forward_seconds"] + row["backward_seconds"] + row["optimizer_seconds"] > 0


def test_data_stands_beside_training(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = (row for row in rows_of(["data", *SMALL, "--steps", "2", "--gib", "0.01"], capsys) if "what" not in row)
    assert row["ratio"] == pytest.approx(row["loader_images_per_second"] / row["training_images_per_second"])


def test_coordinates_has_both_parametrizations_of_every_output(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("model.num_layers=2", "train.batch_images=8", "--widths", "32,64", "--seeds", "1")
    rows = {row["output"]: row for row in rows_of(["coordinates", *small], capsys)}
    assert rows["patch embedding"]["mup_value"] == pytest.approx(0, abs=0.1)
    assert rows["patch embedding"]["standard_value"] < -0.1
    assert {*rows["modulation"]} == {"output", "standard_value", "standard_change", "mup_value", "mup_change"}


@pytest.mark.parametrize("widths", ["64", "64,64", "64,wide", "", "64," + "9" * 5000, "64,-1"])
def test_widths_that_are_not_several_numbers_are_one_line(widths: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "coordinates", "--widths", widths]) == 2
    captured = capsys.readouterr()
    assert "is not a list of several widths. Use --widths 64,128,256,512." in captured.err
    assert len(captured.err.splitlines()) == 1


def test_compile_measures_both_implementations_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "compile", "train.implementation=fast"]) == 2
    assert "Leave train.implementation out." in capsys.readouterr().err


def test_checkpoint_says_what_a_save_costs_at_the_cadence_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["checkpoint.every_images=800", "--steps", "4", "--rounds", "2"]
    (row,) = rows_of(["checkpoint", *SMALL, *settings], capsys)
    assert row["cadence_iterations"] == 100
    assert row["stall_share"] == pytest.approx(row["extra_seconds"] / (100 * row["iteration_seconds"]))


@pytest.mark.slow
def test_cli_times_every_command_it_promises_something_of(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(["cli", *SMALL, "--rounds", "1"], capsys)
    assert {row["measure"]: row["limit_seconds"] for row in rows} == LIMIT_SECONDS
    assert all(row["seconds"] > 0 for row in rows)


@pytest.mark.slow
def test_analysis_times_every_command_that_reads_runs_twice(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(["analysis", "--runs", "10"], capsys)
    assert [row["measure"] for row in rows] == [
        "ecdit status", "load", "ecdit export", "ecdit plot all", "ecdit report"
    ]  # fmt: skip
    assert all(row["runs"] == 10 and row["seconds"] > 0 and row["again_seconds"] > 0 for row in rows)
    assert all(0.02 < row["gibibytes"] < row["limit_gibibytes"] for row in rows)


def test_a_person_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "train", *SMALL, "--steps", "1"]) == 0
    shares, *rows = capsys.readouterr().out.splitlines()
    assert "share of the three" in shares
    assert rows[3].split()[:4] == ["what", "setting", "measured", "target"]
    assert len(rows) == 12


def test_sampling_and_training_stand_beside_dense(
    train_rows: list[dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = [row for row in train_rows if "what" in row]
    sampled = rows_of(["sample", *SMALL, "--rounds", "1", "--clock", "cpu"], capsys)
    for row in [*trained, *sampled]:
        assert row.get("measured", 0) > 0 or row["skipped"] == "no accelerator"
        assert "measured" in row or str(row["command"]).startswith("ecdit bench ")


def test_a_dropless_step_stands_beside_expert_choice_and_a_loop(train_rows: list[dict[str, float]]) -> None:
    dropless = {row["what"]: row for row in train_rows if "dropless" in str(row.get("what"))}
    beside, same_flops, loop, executed = (
        f"training step of {DROPLESS} / expert choice",
        f"training step of {DROPLESS} / expert choice of the same FLOPs",
        f"training step of a loop over experts as in DiT-MoE / {DROPLESS}",
        f"{DROPLESS}: executed / accounted FLOPs",
    )
    assert list(dropless) == [beside, same_flops, loop, executed]
    for what in (beside, same_flops, loop):
        assert dropless[what]["measured"] == pytest.approx(
            dropless[what]["peer_seconds"] / dropless[what]["seconds"]
            if what == loop
            else dropless[what]["seconds"] / dropless[what]["peer_seconds"]
        )
    flops = [budget(load_config([*SMALL, f"routing={name}"])) for name in ("shared_expert", "expert_choice")]
    assert dropless[beside]["floor"] == flops[0].train_flops_per_image / flops[1].train_flops_per_image
    assert dropless[same_flops]["floor"] == 1.0
    assert dropless[beside]["target"] == 1.3
    assert dropless[loop]["target"] == dropless[executed]["target"] == 1.0
    assert dropless[executed]["measured"] == 1.0


@pytest.mark.slow
def test_routing_has_every_peer_at_every_setting() -> None:
    """In a process of its own: DeepSpeed's groups belong to the process."""
    sizes = ("--tokens", "128", "--width", "32", "--experts", "4", "--experts", "8", "--rounds", "1")
    command = [sys.executable, "-m", "ecdit_cli", "bench", "routing", *SMALL[:1], *sizes, "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout)
    measured = [row for row in rows if "skipped" not in row]
    assert len(measured) == 2 * 7
    assert all(row["measured"] > 0 for row in measured)
    assert {row["target"] for row in measured if row["what"].startswith("DeepSpeed") and "8E" in row["setting"]} == {
        1.5
    }
    assert [row["target"] for row in rows if "skipped" in row] == [1.10, 1.15]


def test_the_layer_is_measured_with_expert_choice_by_image_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "routing", "routing=switch"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ecdit bench routing measures expert choice routed by image, not routing.name=switch")
    assert said.count("\n") == 1


def test_experts_with_biases_are_not_measured_beside_forms_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "routing", "routing.expert_bias=True"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: routing.expert_bias=True does not fit ecdit bench routing and train: a loop over")
    assert said.count("\n") == 1


def test_an_unknown_measure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "trian"]) == 2
    assert capsys.readouterr().err == "error: ecdit bench 'trian' does not exist. Did you mean 'train'?\n"
