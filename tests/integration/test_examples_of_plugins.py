"""The figure and the metric of the how-to pages work with `--plugin FILE`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecdit_cli.app import run
from experiments.config.metrics import METRICS
from experiments.records.run_folder import read_jsonl
from tests.training_runs import random_run_folder
from tests.unit.plugins.conftest import no_plugins

__all__ = ["no_plugins"]

EXAMPLES = Path(__file__).parents[2] / "docs" / "how-to" / "examples"
FIGURE, METRIC = EXAMPLES / "loss_by_parameters.py", EXAMPLES / "mean_saturation.py"


def test_the_figure_is_short_and_shows_the_loss_of_every_run(tmp_path: Path, write_run: Callable[..., Any]) -> None:
    assert len(FIGURE.read_text().splitlines()) <= 40
    settings = {"train": {"images": 3200}, "eval": {"every_images": 1600}}
    for router in ("dense", "expert_choice"):
        write_run(
            tmp_path / "runs" / router, settings | {"routing": {"name": router}}, lambda images: 1.0 - images / 10_000
        )
    out = tmp_path / "figures"
    assert run(["plot", "loss-by-parameters", str(tmp_path / "runs"), "--out", str(out), "--plugin", str(FIGURE)]) == 0
    with (out / "loss-by-parameters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["routing.name"]: float(row["val_loss"]) for row in rows} == pytest.approx(
        {"dense": 0.68, "expert_choice": 0.68}
    )
    assert {path.suffix for path in out.glob("loss-by-parameters.*")} == {".png", ".svg", ".csv"}


def test_the_metric_is_measured_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = random_run_folder(tmp_path / "run")
    words = ["evaluate", str(folder.path), "--metrics", "mean-saturation", "--images", "4", "--steps", "1"]
    assert run(words) == 2
    assert "mean-saturation" in capsys.readouterr().err
    assert run([*words, "--plugin", str(METRIC)]) == 0
    assert "mean-saturation" in METRICS
    (row,) = (row for row in read_jsonl(folder.evals).rows if row["metric"] == "mean-saturation")
    assert row["num_samples"] == 4
    assert 0 < row["value"] < 1
