"""Where runs stand: a folder is believed as far as it can be checked."""

from __future__ import annotations

import os
import time

import pytest

from experiments.records.provenance import host_name
from experiments.records.record_types import EvalRow, Status
from experiments.records.writer import write_status
from sweeps.progress import RunProgress, last_val_loss, read_progress, read_sweep, schedule_seconds
from sweeps.runner import freeze_plan


@pytest.fixture
def run_dir(folder, seeds):
    return folder.run_dir(seeds(0).runs[0])


def write(run_dir, **changes):
    status = {"state": "running", "images_seen": 32, "images_total": 64, "heartbeat": time.time()}
    write_status(run_dir, Status(**{**status, **changes}))


def test_a_run_that_was_not_started_is_planned(run_dir):
    assert read_progress(run_dir, images_total=64) == RunProgress(run_dir.path.name, "planned", 0, 64)


@pytest.mark.parametrize(
    ("writer", "state"),
    [
        ({"pid": os.getpid(), "host": host_name()}, "running"),
        ({"pid": 2**22 + 1, "host": host_name()}, "interrupted"),
        ({"pid": os.getpid(), "host": host_name(), "heartbeat": time.time() - 1e6}, "interrupted"),
        ({"pid": 1, "host": "elsewhere"}, "running"),
        ({"pid": 1, "host": "elsewhere", "heartbeat": time.time() - 1e6}, "interrupted"),
    ],
    ids=["alive", "gone", "its process id was used again", "elsewhere", "silent elsewhere"],
)
def test_running_is_believed_while_the_process_lives(run_dir, writer, state):
    write(run_dir, **writer)
    assert read_progress(run_dir).state == state


def test_a_damaged_status_is_a_failed_run_that_says_so(run_dir):
    write(run_dir)
    run_dir.status_json.write_text("{")
    progress = read_progress(run_dir)
    assert progress.state == "failed"
    assert "is damaged" in progress.reason


def test_a_status_of_a_newer_version_is_not_called_damage(run_dir):
    write(run_dir)
    run_dir.run_json.write_text('{"schema_version": 2}')
    run_dir.status_json.write_text('{"state": "dreaming"}')
    assert "run.json was written by a newer version of ecdit (schema version 2;" in read_progress(run_dir).reason


def test_time_left_of_a_run_is_at_its_last_rate(run_dir):
    write(run_dir, pid=os.getpid(), host=host_name())
    run_dir.steps.write_text('{"images_seen": 32, "loss": 0.5, "images_per_second": 16.0, "seconds": 2.0}\n')
    progress = read_progress(run_dir)
    assert (progress.loss, progress.seconds_left) == (0.5, 2.0)


def test_the_validation_loss_is_the_newest_of_the_raw_weights(run_dir):
    common = {"num_samples": 8, "seed": 0}
    rows = [
        EvalRow(images_seen=32, metric="val_loss", value=0.3, weights="raw", **common),
        EvalRow(images_seen=64, metric="val_loss", value=0.1, weights="raw", **common),
        EvalRow(images_seen=64, metric="val_loss", value=0.2, weights="ema", **common),
        EvalRow(images_seen=96, metric="val_loss_t0", value=0.4, weights="ema", **common),
    ]
    run_dir.path.mkdir(parents=True)
    run_dir.evals.write_text("".join(f"{row.model_dump_json()}\n" for row in rows))
    assert last_val_loss(run_dir) == 0.1


def test_a_folder_is_read_with_and_without_a_plan(folder, seeds):
    plan = freeze_plan(folder, seeds(0, 1))
    write(folder.run_dir(plan.runs[0]), state="done", images_seen=64)
    assert [run.state for run in read_sweep(folder.path).runs] == ["done", "planned"]
    folder.plan_json.unlink()
    assert [run.state for run in read_sweep(folder.path).runs] == ["done"]


@pytest.mark.parametrize(
    ("writer", "is_over"),
    [
        ({"state": "interrupted"}, True),
        ({"pid": 2**22 + 1, "host": host_name()}, True),
        ({"pid": os.getpid(), "host": host_name()}, False),
    ],
    ids=["interrupted", "gone", "alive"],
)
def test_a_run_that_the_sweep_file_does_not_ask_for_any_more_is_over_when_nothing_works_on_it(
    folder, seeds, writer, is_over
):
    plan = freeze_plan(folder, seeds(0, 1))
    write(folder.run_dir(plan.runs[1]), **writer)
    assert [run.is_over for run in read_sweep(folder.path).runs] == [False, False]
    freeze_plan(folder, seeds(0))
    assert {run.name: run.is_over for run in read_sweep(folder.path).runs} == {
        plan.runs[0].name: False, plan.runs[1].name: is_over,
    }  # fmt: skip


def test_the_last_run_is_not_shared_among_slots():
    assert schedule_seconds([10, 10, 10], work_per_slot_second=1, num_slots=2) == 20
    assert schedule_seconds([], work_per_slot_second=1, num_slots=2) == 0
