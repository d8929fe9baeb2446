"""`ecdit plan` as it is used."""

from __future__ import annotations

import json

import pytest

from ecdit_cli.app import run

PAPER = ["model=M", "routing.num_experts=64", "parallel.world=512", "parallel.expert_parallel=64"]
ON_H100 = ["--device", "h100-80gb"]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_of_the_issue_prints_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *PAPER, *ON_H100]) == 0
    out, err = capsys.readouterr()
    for word in ("95.1B", "weights", "gradients", "optimizer state", "(EMA)", "activations", "all-to-all", "FLOP",
                 "GB sent", "device-hours"):  # fmt: skip
        assert word in out
    assert "dollars" not in out
    assert "train.batch_images is not given: planned with 512" in err
    assert "It fits: " in err


def test_json_has_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, *PAPER, *ON_H100, "--price", "2.5")
    assert plan["fits"] is True
    moments = [sum(parts.values()) for parts in plan["memory_gib_by_moment"].values()]
    assert max(moments) == pytest.approx(plan["memory_gib"])
    assert sum(one["seconds"] for one in plan["network"]) == pytest.approx(plan["communication_seconds"])
    assert plan["dollars"] == pytest.approx(2.5 * plan["device_hours"])
    assert plan["device_hours"] == pytest.approx(512 * plan["seconds"] / 3600)


def test_a_layout_that_does_not_fit_is_shown_and_refused_with_one_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "model=M", "routing.num_experts=64", "train.batch_images=512", *ON_H100]) == 2
    out, err = capsys.readouterr()
    assert "total" in out
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the layout does not fit: it needs" in error
    settings = error.partition("Use ")[2].partition(" (")[0].split()
    assert planned(capsys, "model=M", "routing.num_experts=64", "train.batch_images=512", *settings, *ON_H100)["fits"]


def test_a_search_shows_the_cheapest_and_why_the_given_one_is_out(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "model=M", "routing.num_experts=64", "train.batch_images=512", *ON_H100, "--search"]
    assert run(arguments) == 0
    out, err = capsys.readouterr()
    assert "Layouts that fit, the cheapest first" in out
    assert "As given, the layout does not fit" in err
    plan = planned(capsys, *arguments[1:])
    hours = [layout["device_hours"] for layout in plan["layouts"]]
    assert hours == sorted(hours)
    assert plan["device_hours"] == hours[0]
    assert all(layout["fits"] for layout in plan["layouts"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h10"], "--device 'h10' is not in the table. Did you mean 'H100'?"),
        (["parallel.worl=2"], "Did you mean 'parallel.world'?"),
        (["parallel.world=6", "parallel.expert_parallel=4"], "parallel.world=6 is not divisible by"),
        (["model=M", "routing.num_experts=64", *ON_H100, "--search", "--max-devices", "2"], "no layout fits H100."),
        (
            [*ON_H100, "--days", "3"],
            "--days is a limit for --search, which is not given. Add --search, or leave it out.",
        ),
        (["--utilisation", "0.4"], "--utilisation is about the accelerator of a plan, and no --device is given. Add"),
        (
            ["--devices-per-node", "4"],
            "--devices-per-node is about the accelerator of a plan, and no --device is given.",
        ),
        (["--max-devices", "4"], "--max-devices is about the accelerator of a plan, and no --device is given."),
        (["model=XL", *ON_H100, "--search", "--days", "0.000001"], "is known to end within 1e-06 days."),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]


def test_without_a_device_it_is_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = planned(capsys, "model=nano")
    assert plan["device"] == "this machine"
    assert plan["fits"]
    assert "seconds" not in plan


def test_a_layout_is_simulated_beside_its_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["model=nano", "parallel.world=8", "parallel.expert_parallel=4", "--device", "H100"]
    assert run(["plan", *layout, "--simulate", "--json"]) == 0
    step = json.loads(capsys.readouterr().out)["in_shape"]
    assert step["rank"] == 7
    assert step["persistent"] == pytest.approx(step["planned_persistent"], rel=0.05)
    assert step["peak"] == pytest.approx(step["planned_peak"], rel=0.1)
    assert step["collectives"]["alltoall_base"][0] == 8


def test_zero_0_is_simulated_in_the_precision_that_it_trains_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "model=nano", "parallel.zero_stage=0", "--device", "H100", "--simulate", "--json"]) == 0
    step = json.loads(capsys.readouterr().out)["in_shape"]
    assert step["numbers_kept"] == step["params_held"]
    assert step["persistent"] == pytest.approx(step["planned_persistent"], rel=0.05)
    assert step["peak"] == pytest.approx(step["planned_peak"], rel=0.1)
