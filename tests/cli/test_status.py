"""`ecdit status`: every run of a folder, planned ones included."""

from __future__ import annotations

import json
import threading
import time

import pytest

from ecdit_cli.app import run
from experiments.records.record_types import Status
from experiments.records.writer import write_status
from sweeps.folder import SweepFolder
from sweeps.planner import make_plan
from sweeps.runner import freeze_plan
from sweeps.spec import load_spec


@pytest.fixture
def folder(tmp_path, write_run):
    """One run done, one failed, one not started."""
    folder = SweepFolder(tmp_path / "out")
    plan = freeze_plan(folder, make_plan(load_spec("quickstart"), ["routing=dense", "train.images=640"]))
    settings = {"routing": {"name": "dense"}, "train": {"images": 640}, "eval": {"every_images": 320}}
    write_run(folder.run_dir(plan.runs[0]).path, settings, lambda images: 64 / images)
    write_run(folder.run_dir(plan.runs[1]).path, settings, lambda images: 1.0, state="failed", reason="no memory")
    return folder.path


def test_all_runs_and_totals_are_shown(folder, capsys):
    assert run(["status", str(folder)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[1] for line in lines] == ["state", "done", "failed", "planned"]
    assert "0.1000" in lines[1]
    assert lines[2].endswith("no memory")
    assert "1 done, 1 planned, 1 failed" in captured.err


def test_json_leaves_out_what_is_not_known(folder, capsys):
    assert run(["status", str(folder), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    done, failed, planned = status["runs"]
    assert (done["state"], done["images_seen"], done["val_loss"]) == ("done", 640, 0.1)
    assert failed["reason"] == "no memory"
    assert set(planned) == {"name", "state", "images_seen", "images_total"}
    assert status["total"]["num_runs"] == 3
    assert status["total"]["num_planned"] == 1


def test_a_folder_of_runs_without_a_plan_is_read_too(folder, capsys):
    assert run(["status", str(folder / "runs"), "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)["runs"]] == ["done", "failed"]


def test_a_damaged_run_is_shown_and_hides_no_other(folder, capsys):
    next(iter(sorted((folder / "runs").iterdir()))).joinpath("status.json").write_text("{")
    assert run(["status", str(folder)]) == 0
    assert "is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["", "missing"])
def test_a_folder_without_runs_is_a_mistake(tmp_path, path, capsys):
    assert run(["status", str(tmp_path / path)]) == 2
    assert "holds no runs" in capsys.readouterr().err


def test_watching_ends_when_nothing_is_left_to_run(folder, write_run, capsys, monkeypatch):
    monkeypatch.setattr("ecdit_cli.status.WATCH_SECONDS", 0.1)
    planned = SweepFolder(folder).read_plan().runs[2]
    settings = {"routing": {"name": "dense"}, "train": {"images": 640}, "eval": {"every_images": 320}}
    path = SweepFolder(folder).run_dir(planned).path
    later = threading.Timer(0.5, lambda: write_run(path, settings, lambda images: 64 / images))
    later.start()
    assert run(["status", str(folder), "--watch", "--json"]) == 0
    later.join()
    captured = capsys.readouterr()
    assert [row["state"] for row in json.loads(captured.out)["runs"]] == ["done", "failed", "done"]
    assert f"{planned.name}: done" in captured.err


def test_watching_ends_where_what_is_left_will_not_be_run(tmp_path, capsys):
    """A run that left the sweep file stays interrupted, and the child of a trunk that failed stays planned."""
    folder = SweepFolder(tmp_path / "out")
    words = ["routing=dense", "optim.schedule=wsd", "optim.warmup_images=32", "seed=0"]
    plans = [make_plan(load_spec("quickstart"), [*words, f"train.images={images}"]) for images in (320, 640, 960)]
    retired, parent, child = [plan.runs[0] for plan in plans]
    runs = [retired.model_copy(update={"in_spec": False}), parent, child]
    runs[2] = child.model_copy(update={"parent": parent.name, "trunk_images": 512})
    folder.write_plan(plans[0].model_copy(update={"runs": runs}))
    for run_, state in ((retired, "interrupted"), (parent, "failed")):
        status = Status(state=state, images_total=run_.images, heartbeat=time.time(), reason="stopped")
        write_status(folder.run_dir(run_), status)
    assert run(["status", str(folder.path), "--watch"]) == 0
    assert "1 planned, 1 interrupted, 1 failed" in capsys.readouterr().err
