"""Every command that writes where its user says leaves alone what it did not make, and replaces what it made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecdit_cli.app import run
from experiments.records.outputs import MARKS
from tests.training_runs import files_no_larger_than, random_run_folder

Captured = pytest.CaptureFixture[str]
SAMPLE = ("a red circle", "--steps", "2", "--per-caption", "1")

COMMANDS: dict[str, tuple[str, ...]] = {
    "export": ("export", "RUNS", "--out", "OUT/table"),
    "plot": ("plot", "loss-convergence", "RUNS", "--out", "OUT"),
    "compare-routing": ("compare-routing", "RUNS", "--out", "OUT"),
    "report": ("report", "RUNS", "--out", "OUT"),
    "sample": ("sample", "TRAINED", *SAMPLE, "--grid", "OUT/grid.png", "--compute-map"),
    "geneval": ("sample", "TRAINED", *SAMPLE, "--grid", "OUT/../unused.png", "--geneval", "OUT"),
    "dsg": ("sample", "TRAINED", *SAMPLE, "--grid", "OUT/../unused.png", "--dsg", "OUT"),
}


@pytest.fixture
def places(tmp_path: Path, write_run: Callable[..., Any]) -> dict[str, str]:
    settings = {"train": {"images": 3200}, "eval": {"every_images": 1600}}
    for name in ("dense", "expert_choice"):
        write_run(tmp_path / "runs" / name, settings | {"routing": {"name": name}}, lambda n: 1.0 - n / 1e4)
    return {"RUNS": str(tmp_path / "runs"), "OUT": str(tmp_path / "out" / "here"), "TRAINED": str(tmp_path / "ec")}


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKS)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_user_put_in_the_place_of_an_output_stays(places: dict[str, str], name: str, capsys: Captured) -> None:
    if "TRAINED" in COMMANDS[name]:
        random_run_folder(Path(places["TRAINED"]), "routing=expert_choice")
    out = Path(places["OUT"])
    words = list(COMMANDS[name])
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
    assert run(words) == 0
    made = files_below(out)
    assert made
    assert run(words) == 0, "what the command made, it replaces"
    assert files_below(out) == made
    for path in made[:: max(1, len(made) // 4)]:
        ours = path.read_bytes()
        path.write_bytes(b"mine")
        capsys.readouterr()
        assert run(words) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {path} is there already")
        assert path.read_bytes() == b"mine"
        path.write_bytes(ours)


def test_a_page_that_is_not_ours_is_not_removed_where_the_export_has_none(
    places: dict[str, str], tmp_path: Path, write_run: Callable[..., Any]
) -> None:
    write_run(tmp_path / "failed" / "a", {}, lambda n: 1.0, state="failed")
    notes = tmp_path / "notes.md"
    notes.write_text("mine")
    assert run(["export", str(tmp_path / "failed"), "--out", str(tmp_path / "notes")]) == 0
    assert notes.read_text() == "mine"
    assert (tmp_path / "notes.csv").is_file()


@pytest.mark.parametrize("out", ["/", ".", "", ".."])
def test_a_prefix_that_names_a_folder_is_one_line(places: dict[str, str], out: str, capsys: Captured) -> None:
    assert run(["export", places["RUNS"], "--out", out]) == 2
    assert "is a folder, and no name to write files under. For example: --out runs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["export", "plot", "compare-routing", "report"])
def test_a_name_that_is_too_long_is_one_line(places: dict[str, str], name: str, capsys: Captured) -> None:
    long = places | {"OUT": f"{places['OUT']}/{'x' * 300}"}
    words = list(COMMANDS[name])
    for place, path in long.items():
        words = [word.replace(place, path) for word in words]
    assert run(words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "file name too long. Choose a shorter name." in line


def test_weights_go_to_a_new_folder_and_nothing_is_left_of_a_failed_export(tmp_path: Path, capsys: Captured) -> None:
    trained = random_run_folder(tmp_path / "run").path
    file = tmp_path / "file"
    file.write_text("mine")
    assert run(["export-weights", str(trained), str(file)]) == 1
    assert f"error: {file} is a file. Name a new folder." in capsys.readouterr().err
    assert file.read_text() == "mine"
    capsys.readouterr()
    with files_no_larger_than(100_000):
        assert run(["export-weights", str(trained), str(tmp_path / "weights")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    assert captured.err.splitlines()[-1].endswith("file too large. Free space there and run the same command again.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]
    assert run(["export-weights", str(trained), str(tmp_path / "weights")]) == 0


@pytest.mark.parametrize("command", ["export-weights RUN OUT", "train --run-dir OUT", "train --dry-run --run-dir OUT"])
def test_nothing_is_made_inside_a_run(command: str, tmp_path: Path, capsys: Captured) -> None:
    trained = random_run_folder(tmp_path / "run").path
    before = sorted(trained.rglob("*"))
    inside = trained / "sub" / "out"
    assert run(command.replace("RUN", str(trained)).replace("OUT", str(inside)).split()) == 2
    message = f"error: {inside} is inside the run {trained}. Name a folder beside it.\n"
    assert capsys.readouterr().err == message
    assert sorted(trained.rglob("*")) == before
