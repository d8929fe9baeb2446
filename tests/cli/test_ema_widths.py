"""`--ema`: averages of other widths of a run with `train.ema=power`, measured, sampled and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ecdit_cli.app import run
from experiments.records.run_folder import RunDir, read_jsonl
from tests.command_errors import error_of
from tests.training_runs import TINY, random_run_folder

Captured = pytest.CaptureFixture[str]
LOSS = ("--metrics", "validation-loss")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six checkpoints, of which two stay whole."""
    folder = tmp_path_factory.mktemp("power") / "run"
    assert run(["train", *TINY, "train.ema=power", "--run-dir", str(folder), "--no-progress"]) == 0
    return folder


@pytest.fixture
def trained(original: Path, tmp_path: Path) -> Path:
    """A copy, which a test may write to."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def rows_of(folder: Path, metric: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(RunDir(folder).evals).rows if row["metric"] == metric]


def test_the_final_validation_is_of_the_first_width_and_all_averages_are_kept(original: Path) -> None:
    names = sorted(path.name for path in RunDir(original).checkpoints.iterdir())
    whole = ["images_000000000160", "images_000000000192"]
    assert names == [*(f"averages_{images:012d}" for images in (32, 64, 96, 128)), *whole]
    assert RunDir(original).read_run().config["train"]["ema"] == "power"
    (final,) = [row for row in rows_of(original, "val_loss") if row["weights"] == "ema"]
    assert "settings" not in final or "ema_width" not in final["settings"]


def test_each_width_has_rows_that_carry_it_and_the_first_is_what_training_measured(
    trained: Path, capsys: Captured
) -> None:
    assert run(["evaluate", str(trained), *LOSS, "--ema", "0.05,0.10,0.15", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(one["ema_width"], len(one["rows"])) for one in shown] == [(0.05, 2), (0.1, 2), (0.15, 2)]
    rows = rows_of(trained, "validation-loss")
    errors = rows_of(trained, "validation-velocity-error")  # the same number where the network predicts the velocity
    assert [row["value"] for row in errors] == [row["value"] for row in rows]
    assert [row["settings"] for row in rows] == [
        {"precision": "fp32", "ema_width": width} for width in (0.05, 0.1, 0.15)
    ]
    assert len({row["value"] for row in rows}) == 3
    (final,) = [row for row in rows_of(trained, "val_loss") if row["weights"] == "ema"]
    assert (rows[0]["value"], rows[0]["num_samples"]) == (final["value"], final["num_samples"])


def test_a_width_is_not_taken_for_the_average_that_training_keeps(trained: Path, capsys: Captured) -> None:
    assert run(["evaluate", str(trained), *LOSS, "--ema", "0.1"]) == 0
    assert run(["evaluate", str(trained), *LOSS]) == 0
    assert "recorded already" not in capsys.readouterr().err
    marked, plain = rows_of(trained, "validation-loss")
    assert (marked["settings"].get("ema_width"), plain["settings"].get("ema_width")) == (0.1, None)
    assert marked["value"] != plain["value"]
    assert run(["evaluate", str(trained), *LOSS, "--ema", "0.10"]) == 0
    captured = capsys.readouterr()
    assert "run, EMA width 0.1, guidance 2: validation-loss recorded already." in captured.err
    assert captured.out.split()[:4] == ["run", "EMA", "width", "guidance"]


def test_images_and_routing_are_measured_at_a_width_too(trained: Path) -> None:
    metrics = ("--metrics", "frechet-shapes,routing", "--images", "4", "--steps", "2")
    assert run(["evaluate", str(trained), *metrics, "--ema", "0.15"]) == 0
    measured = ("frechet-shapes", "object_compute_ratio", "branch_divergence")
    assert all(row["settings"]["ema_width"] == 0.15 for metric in measured for row in rows_of(trained, metric))
    maps = read_jsonl(RunDir(trained).routing_maps).rows
    assert maps
    assert all(row["settings"]["ema_width"] == 0.15 for row in maps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ema", "0.01"], "--ema 0.01 cannot be made of the averages of 6 checkpoints in"),
        (["--ema", "0.05,0.28"], "Widths from 0.033 to 0.186 can; more checkpoints (checkpoint.every_images) allow"),
        (["--ema", "0.5"], "--ema '0.5' is out of range. A width is from 0.001 to 0.288, where all of training"),
        (["--ema", "wide"], "--ema 'wide' is not a list of widths. Write for example --ema 0.05,0.10."),
        (["--ema", ",".join(f"0.{n}" for n in range(1000, 1101))], "--ema names 101 widths. At most 100 are measured"),
        (["--ema", "0.1", "--weights", "raw"], "--ema names an average, and --weights raw is none. Leave out one of"),
        (["--ema", "0.1", "--metrics", "inference-time"], "inference-time does not depend on --ema. Measure it"),
        (["--ema", "0.1,0.12", "--import-geneval", "x"], "Several widths of the average for one file of results. Name"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_measured(
    original: Path, options: list[str], message: str, capsys: Captured
) -> None:
    before = RunDir(original).evals.read_bytes()
    assert message in error_of(["evaluate", str(original), *LOSS, *options], capsys)
    assert RunDir(original).evals.read_bytes() == before


def test_a_run_with_a_halflife_is_refused(tmp_path: Path, capsys: Captured) -> None:
    other = random_run_folder(tmp_path / "other").path
    for command in (["evaluate"], ["sample"], ["export-weights"]):
        out = [str(tmp_path / "out")] if command == ["export-weights"] else []
        line = error_of([*command, str(other), *out, "--ema", "0.05"], capsys)
        assert "was trained with train.ema=halflife, whose average has one width. Leave out --ema, or train" in line


def test_among_several_runs_one_without_a_checkpoint_is_left_out(trained: Path, capsys: Captured) -> None:
    other = trained.with_name("other")
    shutil.copytree(trained, other)
    shutil.rmtree(RunDir(other).checkpoints)
    assert run(["evaluate", str(trained), str(other), *LOSS, "--ema", "0.1"]) == 0
    assert f"Left out: {other}:" in capsys.readouterr().err
    assert len(rows_of(trained, "validation-loss")) == 1


def test_what_is_exported_at_a_width_makes_the_images_of_the_run_at_that_width(
    trained: Path, tmp_path: Path, capsys: Captured
) -> None:
    out, plain = tmp_path / "weights", tmp_path / "plain"
    assert run(["export-weights", str(trained), str(out), "--ema", "0.12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ema_width"] == 0.12
    assert json.loads((out / "model.json").read_text())["ema_width"] == 0.12
    assert run(["export-weights", str(trained), str(plain)]) == 0
    assert "ema_width" not in json.loads((plain / "model.json").read_text())
    first = load_file(max(RunDir(trained).checkpoints.glob("images_*")) / "ema.safetensors")
    assert all((first[name] == tensor).all() for name, tensor in load_file(plain / "model.safetensors").items())
    grids = [tmp_path / "one.png", tmp_path / "two.png"]
    how = ("a red circle", "--steps", "2", "--grid")
    assert run(["sample", str(trained), *how, str(grids[0]), "--ema", "0.12"]) == 0
    assert run(["sample", str(out), *how, str(grids[1])]) == 0
    assert grids[0].read_bytes() == grids[1].read_bytes()
    line = error_of(["sample", str(out), *how, str(grids[1]), "--ema", "0.12"], capsys)
    assert "holds exported weights, of which no other average can be made. Leave out --ema, or export" in line


def test_the_figure_has_a_point_for_every_width(trained: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "No run has" in error_of(["plot", "ema-width", str(trained), "--out", str(tmp_path / "figures")], capsys)
    assert run(["evaluate", str(trained), *LOSS, "--ema", "0.05,0.10,0.15"]) == 0
    assert run(["plot", "ema-width", str(trained), "--out", str(tmp_path / "figures")]) == 0
    lines = (tmp_path / "figures" / "ema-width.csv").read_text().splitlines()
    assert len(lines) == 4
