"""`ecdit export`: every run in one table, the unfinished and the damaged too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ecdit_cli.app import run
from experiments.records.run_folder import RunDir

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path, write_run: Callable[..., Any]) -> Path:
    settings = {"train": {"images": 3200}, "eval": {"every_images": 1600}}
    write_run(tmp_path / "runs" / "a", settings, lambda n: 1.0 - n / 1e4, final={"dropped_share": 0.25})
    other = settings | {"routing": {"name": "dense", "eval_capacity_factor": 1.5}}
    write_run(tmp_path / "runs" / "b", other, lambda n: 2.0, state="failed", reason="loss nan")
    return tmp_path / "runs"


def test_csv_and_parquet_hold_the_same_rows(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["export", str(runs), "--out", str(tmp_path / "tables" / "all")]) == 0
    files = [tmp_path / "tables" / f"all.{kind}" for kind in ("csv", "parquet")]
    said = capsys.readouterr().err
    assert all(str(path) in said for path in files)
    for table in (pd.read_csv(files[0]), pd.read_parquet(files[1])):
        assert table["run"].tolist() == ["a", "b"]
        assert table["state"].tolist() == ["done", "failed"]
        assert table["evals.val_loss"].tolist() == pytest.approx([0.68, 2.0])
        assert table["steps.images_seen"].tolist() == [3200, 3200]
        assert table["evals.dropped_share"].isna().tolist() == [False, True]
        assert table["routing.name"].tolist()[1] == "dense"
        assert table["reason"].tolist()[1] == "loss nan"


def test_what_a_sweep_recorded_of_a_run_is_written_as_plain_values(
    tmp_path: Path, write_run: Callable[..., Any], capsys: Captured
) -> None:
    parent = {"name": "short", "config_id": "0123456789", "images": 640}
    tuned = {
        "setting": "optim.learning_rate", "value": 0.002, "values": [0.001, 0.002], "losses": [0.5, 0.4],
        "num_seeds": 1, "on": {"train.images": 640}, "proxies": ["a", "b"], "edge": True,
    }  # fmt: skip
    settings = {"model": {"name": "nano"}, "train": {"images": 6400}, "seed": 0}
    write_run(tmp_path / "runs" / "a", settings, lambda n: 1.0, parent=parent, tuned=tuned, retry_of="b")
    assert run(["export", str(tmp_path / "runs"), "--out", str(tmp_path / "all")]) == 0
    capsys.readouterr()
    for table in (pd.read_parquet(tmp_path / "all.parquet"), pd.read_csv(tmp_path / "all.csv")):
        row = table.iloc[0]
        assert (row["parent"], row["trunk_images"], row["retry_of"]) == ("short", 640, "b")
        assert row["tuned"].startswith("best of 2 values")


def test_by_default_they_lie_beside_the_runs(runs: Path, capsys: Captured) -> None:
    assert run(["export", str(runs), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["num_runs"] == 2
    assert printed["files"] == [str(runs / f"runs.{kind}") for kind in ("csv", "parquet", "md")]
    assert "model.name" in printed["columns"]


def test_the_last_value_counts_and_says_its_guidance(runs: Path) -> None:
    rows = [{"value": value, "settings": {"guidance": scale}} for value, scale in ((0.1, 1.0), (0.5, 4.0))]
    about = {"images_seen": 3200, "metric": "shapes-geneval", "num_samples": 8, "seed": 0, "weights": "ema"}
    with RunDir(runs / "a").evals.open("a") as file:
        file.writelines(json.dumps(about | row) + "\n" for row in rows)
    assert run(["export", str(runs)]) == 0
    table = pd.read_csv(runs / "runs.csv")
    assert table["evals.ema.shapes-geneval"][0] == 0.5
    assert table["evals.ema.shapes-geneval@guidance"][0] == 4.0


def test_a_damaged_run_is_a_row_that_says_so(runs: Path) -> None:
    RunDir(runs / "a").run_json.write_text("{")
    assert run(["export", str(runs)]) == 0
    damaged = pd.read_csv(runs / "runs.csv").set_index("run")["damaged"]
    assert "run.json is damaged" in damaged["a"]
    assert pd.isna(damaged["b"])


def test_no_runs_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    assert run(["export", str(tmp_path)]) == 2
    assert "holds no runs" in capsys.readouterr().err
    assert run(["export", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_finished_runs_are_printed_and_written_with_the_spread_over_seeds(
    runs: Path, write_run: Callable[..., Any], capsys: Captured
) -> None:
    settings = {"train": {"images": 3200}, "eval": {"every_images": 1600}, "seed": 1}
    write_run(runs / "c", settings, lambda n: 1.002 - n / 1e4)
    other = settings | {"routing": {"name": "dense"}}
    write_run(runs / "d", other, lambda n: 0.9)
    assert run(["export", str(runs), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in printed["runs"]] == ["a", "c", "d"]
    spread = {row["routing"]: (row["num_seeds"], row["val_loss_std"]) for row in printed["arms"]}
    assert spread["dense"] == (1, None)
    assert spread["expert_choice"] == (2, pytest.approx(0.001 * 2**0.5))
    assert run(["export", str(runs)]) == 0
    out, said = capsys.readouterr()
    assert {"Preset", "f_c", "Activated", "Without embeddings", "Images/s", "Val. loss"} <= set(_titles(out))
    assert "b: failed at 3,200 of 3,200 images: loss nan" in said
    page = (runs / "runs.md").read_text()
    assert "## Over seeds" in page
    assert [line[:5] for line in page.splitlines() if line[:5] in ("| a |", "| c |", "| d |")] == [
        "| a |",
        "| c |",
        "| d |",
    ]


def test_unfinished_runs_alone_give_no_final_values_and_say_so(runs: Path, capsys: Captured) -> None:
    assert run(["export", str(runs / "b")]) == 0
    assert "No table of final values: None of the 1 runs is finished" in capsys.readouterr().err
    assert not (runs / "b" / "runs.md").exists()


def test_no_page_of_an_earlier_export_stays_beside_a_newer_table(runs: Path) -> None:
    assert run(["export", str(runs)]) == 0
    assert (runs / "runs.md").exists()
    RunDir(runs / "a").run_json.write_text("{")
    assert run(["export", str(runs)]) == 0
    assert not (runs / "runs.md").exists()


def test_without_runs_it_asks_which(capsys: Captured) -> None:
    assert run(["export"]) == 2
    assert "No runs are named. Name a folder: ecdit export DIR" in capsys.readouterr().err


def _titles(out: str) -> list[str]:
    return [title.strip() for title in out.splitlines()[0].split("  ")]
