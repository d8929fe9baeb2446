"""Runs of different objectives share one measure in analysis, and runs of earlier versions go on as they were."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.load_records import Records, load_records
from analysis.run_table import run_table
from experiments.config.objectives import OBJECTIVES, loss_is_velocity_error
from experiments.errors import RecordError
from experiments.records.run_folder import RunDir

WriteRun = Callable[..., RunDir]
BASE: dict[str, Any] = {"routing": {"name": "dense"}, "train": {"images": 3200}, "eval": {"every_images": 3200}}
KINDS = [(row.name, prediction) for row in OBJECTIVES.values() for prediction in row.predictions]
OTHERS = [kind for kind in KINDS if not loss_is_velocity_error(*kind)]
ERRORS = {"velocity_error": 0.5, "velocity_error_same_t": 0.6, "velocity_error_t3": 0.4}
LOSSES = {"val_loss_same_t": 7.0, "val_loss_t3": 7.0, "validation-loss": 7.0, "validation-velocity-error": 0.55}


def write(folder: Path, write_run: WriteRun, objective: str, prediction: str, **more: float) -> Path:
    settings = BASE | {"flow": {"objective": objective, "prediction": prediction}}
    write_run(folder / f"{objective}-{prediction}", settings, lambda images: 7.0, final=more)
    return folder


def values(records: Records) -> dict[str, float]:
    return dict(zip(records.evals["metric"], records.evals["value"], strict=True))


@pytest.mark.parametrize(("objective", "prediction"), OTHERS)
def test_the_velocity_error_stands_for_the_loss(
    objective: str, prediction: str, tmp_path: Path, write_run: WriteRun
) -> None:
    told: list[str] = []
    folder = write(tmp_path, write_run, objective, prediction, **LOSSES, **ERRORS)
    records = load_records([folder], tell=told.append)
    assert values(records) == {"val_loss": 0.5, "val_loss_same_t": 0.6, "val_loss_t3": 0.4, "validation-loss": 0.55}
    assert records.steps["loss"].isna().all()
    row = run_table(records).iloc[0]
    assert (row["val_loss"], row["val_loss_same_t"]) == (0.5, 0.6)
    assert math.isnan(row["train_loss"])
    assert told == [
        f"1 of 1 runs has a loss of another kind ({objective} of {prediction}): its velocity_error stands for "
        "val_loss, and its training losses are left out."
    ]


def test_where_the_loss_is_the_velocity_error_it_stays(tmp_path: Path, write_run: WriteRun) -> None:
    told: list[str] = []
    folder = write(tmp_path, write_run, "rectified_flow", "velocity", velocity_error=7.0, val_loss_t3=6.0)
    records = load_records([folder], tell=told.append)
    assert values(records) == {"val_loss": 7.0, "val_loss_t3": 6.0}
    assert (records.steps["loss"] == 7.0).all()
    assert told == []


def test_runs_of_an_earlier_version_have_no_velocity_error_and_stay(tmp_path: Path, write_run: WriteRun) -> None:
    write(tmp_path, write_run, "rectified_flow", "velocity")
    write(tmp_path, write_run, "edm", "x0", **ERRORS)
    table = run_table(load_records([tmp_path])).set_index("flow.objective")["val_loss"]
    assert table.to_dict() == {"rectified_flow": 7.0, "edm": 0.5}


def test_a_run_without_the_shared_measure_is_left_out(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write(tmp_path, write_run, "ddpm", "noise")
    with pytest.raises(RecordError, match=r"No finished run is complete .*no validation loss at 3,200 images, its end"):
        load_records([folder])


def test_the_records_themselves_keep_both(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write(tmp_path, write_run, "ddpm", "noise", **ERRORS)
    load_records([folder])
    lines = (folder / "ddpm-noise" / "evals.jsonl").read_text().splitlines()
    assert {json.loads(line)["metric"] for line in lines} == {"val_loss", *ERRORS}
