"""Bad runs for `report`, `plot` and `compare-routing`: refused with what is wrong, or left out, counted and listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecdit_cli.app import run
from experiments.records.run_folder import RunDir

Captured = pytest.CaptureFixture[str]
WriteRun = Callable[..., RunDir]
COMMANDS = (["report"], ["plot", "routing"], ["compare-routing"])
SETTINGS: dict[str, Any] = {"train": {"images": 3200}, "eval": {"every_images": 1600}}

pytestmark = pytest.mark.parametrize("command", COMMANDS, ids=[words[0] for words in COMMANDS])


@pytest.fixture
def runs(tmp_path: Path, write_run: WriteRun) -> Path:
    """Dense and expert choice, one seed each."""
    for router in ("dense", "expert_choice"):
        settings = SETTINGS | {"routing": {"name": router}}
        write_run(tmp_path / "runs" / router, settings, lambda images: 1.0 - 1e-4 * images)
    return tmp_path / "runs"


def executed(command: list[str], runs: Path, tmp_path: Path) -> int:
    return run([*command, str(runs), "--out", str(tmp_path / "out")])


def refusal(command: list[str], runs: Path, tmp_path: Path, capsys: Captured) -> str:
    """The one line that a refused command says; it writes nothing."""
    assert executed(command, runs, tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
    (line,) = captured.err.splitlines()
    return line


def test_an_empty_folder(command: list[str], tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "runs").mkdir()
    assert refusal(command, tmp_path / "runs", tmp_path, capsys).startswith("error: No runs at or below ")


def test_a_run_of_a_newer_version(
    command: list[str], runs: Path, tmp_path: Path, write_run: WriteRun, capsys: Captured
) -> None:
    """It is left out and listed: of many runs a single one must not stop the comparison of the others."""
    file = write_run(runs / "newer", SETTINGS | {"routing": {"name": "switch"}}, lambda images: 1.0).run_json
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 99}))
    assert executed(command, runs, tmp_path) == 0
    said = capsys.readouterr().err.splitlines()
    reason = f"{file} was written by a newer version of ecdit (schema version 99; this one reads 1)."
    assert said[:2] == ["Left out: 1; used: 2 runs.", f"  {runs / 'newer'}: {reason}"]


def test_different_data(command: list[str], runs: Path, tmp_path: Path, write_run: WriteRun, capsys: Captured) -> None:
    write_run(runs / "other", SETTINGS | {"routing": {"name": "switch"}, "data": {"seed": 7}}, lambda images: 1.0)
    said = refusal(command, runs, tmp_path, capsys)
    assert said == (
        f"error: Runs differ in data.seed: 0 in {runs / 'dense'}, 7 in {runs / 'other'}. "
        "Name only the folders that belong together."
    )


def test_different_validation_sets(command: list[str], runs: Path, tmp_path: Path, capsys: Captured) -> None:
    file = RunDir(runs / "expert_choice").evals
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {"seed": 5}) + "\n" for row in rows))
    assert "Runs differ in seed of val_loss: 0 in " in refusal(command, runs, tmp_path, capsys)


def test_what_is_damaged_is_left_out_counted_and_listed(
    command: list[str], runs: Path, tmp_path: Path, write_run: WriteRun, capsys: Captured
) -> None:
    write_run(runs / "nan", SETTINGS | {"routing": {"name": "switch"}}, lambda images: 1.0)
    evals = RunDir(runs / "nan").evals
    evals.write_text(evals.read_text().replace('"value":1.0', '"value":NaN'))
    with RunDir(runs / "dense").steps.open("a") as file:
        file.write('{"images_seen": 3200, "lo')
    assert executed(command, runs, tmp_path) == 0
    said = capsys.readouterr().err.splitlines()
    expected = [
        f"  {runs / 'dense'}: 1 row of steps.jsonl damaged (line 11: EOF while parsing a string at column 25)",
        f"  {runs / 'nan'}: 2 rows of evals.jsonl without finite numbers (line 1; line 2)",
        f"  {runs / 'nan'}: no validation loss at 3,200 images, its end",
    ]
    assert said[:4] == ["Left out: 3; used: 2 runs.", *expected]
    for page in (tmp_path / "out").glob("*.md"):
        text = page.read_text().replace("\\", "")
        assert all(line.strip() in text for line in expected)


def test_one_seed_invents_no_spread(command: list[str], runs: Path, tmp_path: Path, capsys: Captured) -> None:
    assert executed(command, runs, tmp_path) == 0
    captured = capsys.readouterr()
    for page in (tmp_path / "out").glob("*.md"):
        text = page.read_text()
        assert "not testable" in text
        assert "1 seed: no spread can be given" in text
        assert "95% low" not in text
    assert "nan" not in captured.out.lower().split()
