"""The plan of a sweep and the folders of its runs are input: what is wrong is named, and the other runs go on."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from ecdit_cli.app import run
from experiments.errors import SpecError
from experiments.inputs import MAX_SETTINGS_BYTES
from experiments.records.record_types import Status
from experiments.records.writer import write_status
from sweeps.folder import SweepFolder
from sweeps.plan import MAX_PLAN_BYTES
from sweeps.progress import read_progress, read_sweep
from sweeps.runner import freeze_plan
from sweeps.spec import MAX_RUNS


@pytest.fixture
def planned(folder, seeds) -> SweepFolder:
    """Two planned runs."""
    freeze_plan(folder, seeds(0, 1))
    return folder


def change_first_run(folder: SweepFolder, **changes: Any) -> None:
    raw = json.loads(folder.plan_json.read_text())
    raw["runs"][0] |= changes
    folder.plan_json.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": "64"}, "runs.0.images: Input should be a valid integer"),
        ({"images": True}, "runs.0.images: Input should be a valid integer"),
        ({"images": -1}, "runs.0.images: "),
        ({"images": 10**30}, "images: 10"),
        ({"name": "../../elsewhere"}, "runs.0.name: Value error, it should be the name of a folder"),
        ({"name": ""}, "runs.0.name: "),
        ({"config_id": "0" * 10}, "has the id"),
        ({"config": {"model": {"name": "giant"}}}, "has the id"),
        ({"newer": 1}, "runs.0.newer: "),
    ],
)
def test_a_wrong_plan_is_one_line_that_names_the_value(planned, changes, said):
    change_first_run(planned, **changes)
    with pytest.raises(SpecError, match=r"plan\.json is damaged: ") as raised:
        planned.read_plan()
    assert said in str(raised.value)


def test_the_plan_of_the_largest_sweep_can_be_read(planned, monkeypatch):
    """A plan was read with the limit of settings files, which is that of about 6,000 runs."""
    plan = planned.read_plan()
    assert MAX_RUNS * len(plan.runs[0].model_dump_json(indent=1)) < MAX_PLAN_BYTES / 4
    large = plan.model_copy(update={"spec": {"command": "x" * (MAX_SETTINGS_BYTES + 1)}})
    planned.write_plan(large)
    assert planned.plan_json.stat().st_size > MAX_SETTINGS_BYTES
    assert planned.read_plan() == large
    monkeypatch.setattr("sweeps.folder.MAX_PLAN_BYTES", 10**6)
    with pytest.raises(SpecError, match=r"plan\.json would be larger than 1 MiB, the most that is read\."):
        planned.write_plan(large)
    with pytest.raises(SpecError, match=r"plan\.json cannot be read: it is larger than 1 MiB"):
        planned.read_plan()


def test_two_runs_of_one_name_are_refused(planned):
    raw = json.loads(planned.plan_json.read_text())
    change_first_run(planned, name=raw["runs"][1]["name"])
    with pytest.raises(SpecError, match=f"2 runs have the name {raw['runs'][1]['name']}"):
        planned.read_plan()


def test_settings_of_a_newer_version_are_named(planned):
    from experiments.settings_id import settings_id

    config = json.loads(planned.plan_json.read_text())["runs"][0]["config"]
    config["model"]["name"] = "giant"
    change_first_run(planned, config=config, config_id=settings_id(config))
    with pytest.raises(SpecError, match=r": model\.name='giant' is not a preset"):
        planned.read_plan()
    snapshot = read_sweep(planned.path)
    assert [run.state for run in snapshot.runs] == ["planned", "planned"], "a command that only shows runs shows them"
    assert not snapshot.left_out


def test_where_the_plan_cannot_be_read_the_runs_are_shown_and_the_plan_is_named(planned, capsys):
    done = planned.run_dir(planned.read_plan().runs[0])
    write_status(done, Status(state="done", images_seen=64, images_total=64, heartbeat=1.0))
    planned.plan_json.unlink()
    os.mkfifo(planned.plan_json)
    snapshot = read_sweep(planned.path)
    assert [progress.state for progress in snapshot.runs] == ["done"]
    reason = f"{planned.plan_json} cannot be read: it is a FIFO, not a regular file."
    assert snapshot.left_out == [(str(planned.plan_json), reason)]
    assert run(["status", str(planned.path)]) == 0
    assert reason in capsys.readouterr().err
    assert run(["sweep", str(planned.path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize("status", [{"pid": -1}, {"pid": 10**30}, {"heartbeat": "now"}, {"images_seen": -5}])
def test_a_hostile_status_is_a_failed_run_beside_the_others(planned, status):
    first, second = (planned.run_dir(one) for one in planned.read_plan().runs)
    whole = {"state": "running", "images_seen": 0, "images_total": 64, "heartbeat": 1.0, "host": os.uname().nodename}
    for run_dir, content in ((first, whole | status), (second, whole | {"state": "done"})):
        run_dir.path.mkdir(parents=True)
        run_dir.status_json.write_text(json.dumps(content))
    assert [progress.state for progress in read_sweep(planned.path).runs] == ["failed", "done"]


def test_rows_of_another_type_are_no_loss_and_rows_that_cannot_be_read_are_a_reason(planned):
    run_dir = planned.run_dir(planned.read_plan().runs[0])
    write_status(run_dir, Status(state="done", images_seen=64, images_total=64, heartbeat=1.0))
    run_dir.steps.write_text('{"images_seen":32,"loss":0.5}\n{"images_seen":64,"loss":"9.5"}\n')
    assert read_progress(run_dir).loss == 0.5
    run_dir.steps.unlink()
    os.mkfifo(run_dir.steps)
    progress = read_progress(run_dir)
    assert (progress.state, progress.loss) == ("done", None)
    assert "steps.jsonl cannot be read: it is a FIFO" in progress.reason


def test_a_planned_run_that_lost_its_records_is_no_run_that_was_not_started(planned):
    run_dir = planned.run_dir(planned.read_plan().runs[0])
    run_dir.path.mkdir(parents=True)
    run_dir.steps.write_text('{"images_seen":32}\n')
    assert read_progress(run_dir).reason == "it has steps.jsonl but neither run.json nor status.json"
