"""`ecdit plot`: the figures that the runs allow, and why not the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.figures.registry import FIGURES, find_figure
from analysis.parameter_counts import COUNTS
from ecdit_cli.app import run

Captured = pytest.CaptureFixture[str]
WriteRun = Callable[..., Any]
SETTINGS: dict[str, Any] = {"train": {"images": 3200}, "eval": {"every_images": 1600}}

NEED_MORE = {
    "inference-time", "alignment", "quality-time", "quality-over-training", "compute-map", "specialization", "guidance",
    "image-quality", "scaling-law", "isoflop", "expert-scaling", "capacity", "memory", "per-timestep-loss",
    "curve-collapse", "best-guidance", "ema-width", "expert-classes",
}  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path, write_run: WriteRun) -> Path:
    """Dense and expert choice, two seeds each, without inference times."""
    for router in ("dense", "expert_choice"):
        for seed in (0, 1):
            settings = SETTINGS | {"routing": {"name": router}, "seed": seed}
            write_run(tmp_path / "runs" / f"{router}-{seed}", settings, lambda images: 1.0 - 1e-4 * images)
    return tmp_path / "runs"


def test_list_names_every_figure_with_what_it_shows(capsys: Captured) -> None:
    assert run(["plot", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["description"]) for row in listed] == [(f.name, f.description) for f in FIGURES.values()]


def test_one_figure_is_three_files_and_stdout_is_their_paths(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["plot", "routing", str(runs), "--out", str(tmp_path / "figures")]) == 0
    captured = capsys.readouterr()
    paths = [tmp_path / "figures" / f"routing.{kind}" for kind in ("png", "svg", "csv")]
    assert captured.out.splitlines() == [str(path) for path in paths]
    assert all(path.stat().st_size > 0 for path in paths)
    assert captured.err == ""


def test_all_draws_what_the_runs_allow_and_says_what_not_and_why(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["plot", "all", str(runs), "--out", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    drawn = json.loads(captured.out)
    assert {entry["figure"] for entry in drawn} == set(FIGURES) - NEED_MORE
    assert all(Path(path).is_file() for entry in drawn for path in entry["files"])
    # A slow machine shows its progress, too.
    reasons = [line for line in captured.err.splitlines() if not line.startswith("drawing ")]
    assert {reason.split(" was not drawn: ")[0] for reason in reasons} == NEED_MORE
    assert reasons[0] == (
        "inference-time was not drawn: No run has a measured inference time. "
        "Measure it with: ecdit evaluate --metrics inference-time RUNS"
    )


def test_all_goes_on_after_a_damaged_file_and_says_which(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    samples = runs / "expert_choice-0" / "samples"
    samples.mkdir()
    (samples / "compute_map.npz").write_bytes(b"PK")
    assert run(["plot", "all", str(runs), "--out", str(tmp_path)]) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("compute-map was not drawn"))
    assert "compute_map.npz is damaged (" in said
    assert (tmp_path / "comparison.png").is_file()
    assert run(["plot", "compute-map", str(runs), "--out", str(tmp_path)]) == 2
    assert "compute_map.npz is damaged (" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [None, 0.1], ids=["only imported", "timed"])
def test_imported_weights_are_in_no_figure_of_losses_and_stop_none(
    seconds: float | None, tmp_path: Path, write_imported: WriteRun, capsys: Captured
) -> None:
    for router in ("dense", "dit_moe"):
        settings = {"model": {"name": "nano", "block": "dit"}, "routing": {"name": router}}
        write_imported(tmp_path / "runs" / router, settings, inference_seconds=seconds)
    assert run(["plot", "all", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    without = "was not drawn: No run has a validation loss. Add runs of `ecdit train`."
    of_losses = [entry.name for entry in FIGURES.values() if entry.of_losses]
    assert [line for line in lines if "validation loss" in line] == [f"{name} {without}" for name in of_losses]
    assert {"loss-convergence", "routing"} < set(of_losses)
    assert (tmp_path / "inference-time.png").is_file() == (seconds is not None)
    for command in (["compare-routing", "--out", str(tmp_path)], ["export"]):
        assert run([command[0], str(tmp_path / "runs"), *command[1:], "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        arms = printed if command[0] == "compare-routing" else printed["arms"]
        assert [(arm["num_seeds"], arm["num_diverged"]) for arm in arms] == [(0, 0), (0, 0)]


def test_an_alias_draws_the_figure_under_its_own_name(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["plot", "paper-fig8", str(runs), "--out", str(tmp_path / "figures")]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "figures" / "loss-convergence.png"))


def test_every_figure_of_the_paper_resolves_and_is_listed(capsys: Captured) -> None:
    assert run(["plot", "--list", "--json"]) == 0
    aliases = [alias for row in json.loads(capsys.readouterr().out) for alias in row.get("aliases", [])]
    assert sorted(aliases) == [f"paper-fig{number}" for number in range(3, 9)]
    assert {find_figure(alias).name for alias in aliases} < set(FIGURES)


def test_printed_values_change_the_picture_and_what_has_none_is_said_once(
    runs: Path, tmp_path: Path, capsys: Captured
) -> None:
    plain, beside = tmp_path / "plain", tmp_path / "beside"
    assert run(["plot", "all", str(runs), "--out", str(plain)]) == 0
    assert "published" not in capsys.readouterr().err
    assert run(["plot", "all", str(runs), "--out", str(beside), "--paper-values"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "No published numbers to show in: routing, comparison."
    for name, changes in (("loss-convergence", True), ("routing", False)):
        svg, csv = [(folder / f"{name}.svg").read_bytes() for folder in (plain, beside)], f"{name}.csv"
        assert (svg[0] != svg[1]) is changes
        assert (plain / csv).read_bytes() == (beside / csv).read_bytes()


def test_a_single_figure_that_cannot_be_drawn_is_a_mistake(runs: Path, capsys: Captured) -> None:
    assert run(["plot", "inference-time", str(runs)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: No run has a measured inference time. Measure it with: ecdit evaluate")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rooting"], "'rooting' is not a figure. Did you mean 'routing'?"),
        (
            [],
            f"No figure is named. Choose from: all, {', '.join(FIGURES)}; --list says what they show.",
        ),
        (
            ["routing", "--parameters", "totl"],
            "--parameters 'totl' is no way to count parameters. Did you mean 'total'?",
        ),
        (["all", "nowhere"], "nowhere is not a folder. Name the folder of a run or of a sweep."),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(arguments: list[str], message: str, capsys: Captured) -> None:
    assert run(["plot", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_runs_that_are_left_out_are_counted_and_listed(
    runs: Path, tmp_path: Path, write_run: WriteRun, capsys: Captured
) -> None:
    settings = SETTINGS | {"routing": {"name": "switch"}}
    write_run(runs / "lost", settings, lambda images: 1.0, state="failed", reason="loss is not finite")
    assert run(["plot", "routing", str(runs), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "Left out: 1; used: 4 runs.",
        f"  {runs / 'lost'}: failed at 3,200 of 3,200 images: loss is not finite",
    ]


def test_a_figure_mixes_no_data(runs: Path, write_run: WriteRun, capsys: Captured) -> None:
    write_run(runs / "other", SETTINGS | {"routing": {"name": "switch"}, "data": {"seed": 7}}, lambda images: 1.0)
    assert run(["plot", "all", str(runs)]) == 2
    assert "error: Runs differ in data.seed: 0 in " in capsys.readouterr().err


def test_every_way_to_count_parameters_is_in_the_help(capsys: Captured) -> None:
    assert run(["plot", "--help"]) == 0
    said = "".join(capsys.readouterr().out.split())  # names are broken at their hyphens
    assert all(name in said for name in COUNTS)
