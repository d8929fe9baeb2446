"""Hostile settings, options and files at the real commands: one line, exit code 2, nothing written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from ecdit_cli.app import app, run

NUMERIC = (int, float, list[int], list[float])


def options(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(command, option) of every option or argument that takes a number."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if isinstance(command, TyperGroup):
            yield from options(command, (*path, name))
            continue
        for parameter in command.params:
            if parameter.type_descriptor.annotation in NUMERIC:
                yield " ".join((*path, name)), parameter


OPTIONS = list(options())


def test_many_commands_have_numeric_options() -> None:
    assert {command for command, _ in OPTIONS} >= {
        "plan", "bench", "sweep", "export-weights", "sample", "evaluate", "data prepare",
    }  # fmt: skip


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[f"{name} {each.name}" for name, each in OPTIONS])
def test_every_numeric_option_has_a_least_and_a_greatest_value(command: str, option: Any) -> None:
    assert option.min is not None
    assert option.max is not None


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[f"{name} {each.name}" for name, each in OPTIONS])
@pytest.mark.parametrize(
    "text", ["inf", "-inf", "nan", "1e308", "-1", "1e-400", "9" * 400, "9" * 5000, "true", "", "x"]
)
def test_an_option_out_of_its_limits_is_one_line(
    command: str, option: Any, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text == "1e-400" and option.min == 0:
        return  # it is zero, which these take
    assert run([*command.split(), f"{option.opts[0]}={text}", *(["x"] if command != "plan" else [])]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


SETTINGS = [
    "model.width=1e300", "model.num_layers=1e12", "model.num_kv_heads=1e9", "model.patch_size=1e12",
    "model.ffn_factor=1e308", "routing.capacity_factor=1e-320", "seed=1e26", "parallel.world=1e300",
    "train.batch_images=1000000007", "optim.learning_rate=nan", "train.images=" + "9" * 5000, "eval.guidance=inf",
    "ecdit.train_flops=1e300", "arm=" * 4000 + "seed=1", "optim={'learning_rate': " + "[" * 4000,
]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[:30])
@pytest.mark.parametrize("command", [["train", "--dry-run"], ["plan"], ["plan", "--search", "--device", "H100"],
                                     ["sweep", "quickstart", "--dry-run", "--no-calibration"]])  # fmt: skip
def test_a_setting_out_of_its_limits_is_one_line(
    command: list[str],
    setting: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*command, setting]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("No --device is given")]
    assert captured.out == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")],
                         ids=["FIFO", "directory", "device"])  # fmt: skip
@pytest.mark.parametrize(
    "command",
    [
        ["train", "--dry-run", "--config"],
        ["plan", "--config"],
        ["sweep", "--dry-run"],
        ["sweep", "quickstart", "--dry-run", "--executor=slurm", "--cluster"],
    ],
)
def test_what_is_no_file_is_one_line(
    command: list[str], make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "f.yaml")
    assert run([*command, str(tmp_path / "f.yaml")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("batch", [1_048_573, 720_720], ids=["a prime", "of 240 divisors"])
def test_a_search_over_a_huge_batch_ends(batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"train.batch_images={batch}", "model.width=131072", "routing.num_experts=720720", "data.image_size=4096"]
    words += ["routing.capacity_factor=64", "routing.group_images=1"]
    assert run(["plan", "--search", "--device", "H100", "--max-devices", "64", *words]) == 2
    assert "error: no layout fits H100. No layout of train.batch_images=" in capsys.readouterr().err


def test_a_name_longer_than_the_file_system_allows_is_no_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "x" * 5000, "--dry-run"]) == 2
    assert "is not a sweep. Choose from:" in capsys.readouterr().err
