"""The mirror shows every row under the same name, asks and prints nothing, and never stops a run."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

from experiments.errors import ConfigError
from experiments.records.record_types import StepRow
from experiments.records.wandb_mirror import RESOLVED, mirror_id, start_mirror
from experiments.records.writer import RecordWriter

pytestmark = pytest.mark.usefixtures("no_account")


@pytest.fixture
def run_offline(run_dir, make_record, make_step, make_eval, make_routing):
    """One whole mirrored run of two steps, an evaluation and a look at the routing."""

    def run(*overrides: str) -> None:
        record = make_record("wandb.mode=offline", *overrides)
        writer = RecordWriter.open(run_dir, record, 0, start_mirror)
        writer.step(make_step(32))
        writer.step(make_step(64))
        averaged = make_eval(64).model_copy(update={"weights": "ema", "value": 0.125})
        wide = averaged.model_copy(update={"settings": {"ema_width": 0.1}, "value": 0.375})
        writer.evaluation([make_eval(64), averaged, wide])
        same_t = make_routing(64).model_copy(update={"condition": "same_t", "dropped_share": 0.5})
        writer.routing([make_routing(64), same_t])
        writer.status("done", 64)
        writer.close()

    return run


def wandb_records(folder: Path) -> list[WandbRecord]:
    """The records of the one `.wandb` file below `folder`: LevelDB's log format behind a header of 7 bytes."""
    wandb.teardown()  # the service process has written everything when it is gone
    (path,) = folder.glob("*run-*/*.wandb")
    content, position, message, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(WandbRecord.FromString(message))
            message = b""
    return records


def history(folder: Path) -> list[dict[str, Any]]:
    """The logged rows; a histogram or an image is a dict."""
    rows: list[dict[str, Any]] = []
    for record in wandb_records(folder):
        if record.HasField("history"):
            row: dict[str, Any] = {}
            for item in record.history.item:
                *parents, last = item.nested_key
                inner = row.setdefault(parents[0], {}) if parents else row
                inner[last] = json.loads(item.value_json)
            rows.append(row)
    return rows


def test_rows_arrive_under_the_same_names(run_offline, run_dir, make_step):
    run_offline()
    first, second = history(run_dir.wandb)
    expected = make_step(32).model_dump(exclude_none=True)
    assert {key: first[key] for key in expected} == expected
    assert first["_step"] == 32
    expected = {
        **make_step(64).model_dump(exclude_none=True),
        "val_loss": 0.25,
        "ema/val_loss": 0.125,
        "ema@0.1/val_loss": 0.375,
        "routing/layer1/entropy": 0.5,
        "routing/layer1/load_entropy": 0.8,
        "routing/layer1/dropped_share": 0.125,
        "routing/layer1/dropped_share_same_t": 0.5,
        "_step": 64,
    }
    assert {key: second[key] for key in expected} == expected
    load = second["routing/layer1/load"]
    assert (load["values"], load["bins"]) == ([0.25, 0.75], [0, 1, 2])


def test_the_run_carries_config_facts_group_and_axes(run_offline, run_dir, make_record):
    run_offline()
    records = wandb_records(run_dir.wandb)
    run = next(record.run for record in records if record.HasField("run"))
    record = make_record("wandb.mode=offline")
    assert (run.run_id, run.run_group, run.display_name) == (mirror_id(record), "quickstart", record.name)
    assert (run.project, run.job_type, list(run.tags)) == ("ecdit", "train", ["nano", "expert_choice"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["routing"] == record.config["routing"]
    assert (config["params_total"], config["flops_per_image"]) == (10, 100)
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert {metric.name for metric in metrics if metric.name} >= {"images_seen", "flops", "seconds"}
    assert any(metric.glob_name == "*" and metric.step_metric == "images_seen" for metric in metrics)


# W&B does not close the file of parameters that it reads.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_the_settings_stay_whole_where_a_sweep_has_a_parameter_of_the_name_of_a_section(
    run_offline, run_dir, make_record, tmp_path, monkeypatch
):
    (tmp_path / "parameters.yaml").write_text("wandb_version: 1\nmodel: {value: nano}\n")  # as an agent hands them over
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "parameters.yaml"))
    run_offline()
    run = next(record.run for record in wandb_records(run_dir.wandb) if record.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["model"] == "nano"
    assert json.loads(config[RESOLVED]) == make_record("wandb.mode=offline").config


def test_a_group_of_the_settings_wins_over_the_sweep(run_offline, run_dir):
    run_offline("wandb.group=mine", "wandb.project=theirs")
    run = next(record.run for record in wandb_records(run_dir.wandb) if record.HasField("run"))
    assert (run.run_group, run.project) == ("mine", "theirs")


@pytest.mark.parametrize("where", ["environment", "settings file"])
def test_the_project_of_wandbs_own_settings_is_honoured_as_the_entity_is(
    run_offline, run_dir, tmp_path, monkeypatch, where
):
    if where == "environment":
        monkeypatch.setenv("WANDB_PROJECT", "theirs")
        monkeypatch.setenv("WANDB_ENTITY", "us")
    else:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text("[default]\nproject = theirs\nentity = us\n")
    wandb.teardown()  # which remembers what it was set up with
    run_offline()
    run = next(record.run for record in wandb_records(run_dir.wandb) if record.HasField("run"))
    assert (run.project, run.entity) == ("theirs", "us")


def test_a_project_of_the_settings_wins_over_the_environment(run_offline, run_dir, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    wandb.teardown()
    run_offline("wandb.project=ecdit")
    run = next(record.run for record in wandb_records(run_dir.wandb) if record.HasField("run"))
    assert run.project == "ecdit"


def test_records_are_the_same_with_and_without_the_mirror(run_offline, run_dir, make_record, make_step):
    run_offline()
    subprocess.run(["rm", "-r", run_dir.wandb], check=True)
    with_mirror = run_dir.steps.read_bytes()
    writer = RecordWriter.open(run_dir, make_record("wandb.mode=disabled"), 32, start_mirror)
    writer.step(make_step(64))
    writer.close()
    assert run_dir.steps.read_bytes() == with_mirror
    assert not run_dir.wandb.exists()


def test_a_resumed_mirror_is_whole(run_offline, run_dir, make_record, make_step):
    run_offline()
    (before,) = run_dir.wandb.glob("offline-run-*")
    before.rename(run_dir.path / "lost")
    writer = RecordWriter.open(run_dir, make_record("wandb.mode=offline"), 64, start_mirror)
    writer.step(make_step(96))
    writer.close()
    rows = history(run_dir.wandb)
    assert [row["_step"] for row in rows] == [32, 64, 96]
    assert rows[1]["val_loss"] == 0.25
    assert next(run_dir.wandb.glob("offline-run-*")).name.endswith(before.name.rsplit("-", 1)[1])


def test_the_id_is_of_the_settings_and_the_first_start(make_record):
    record = make_record()
    assert mirror_id(record) == mirror_id(make_record())
    assert mirror_id(record).startswith(record.config_id)
    assert mirror_id(make_record("seed=1")) != mirror_id(record)
    assert mirror_id(record.model_copy(update={"created_at": "2026-01-01T00:00:00+00:00"})) != mirror_id(record)


def test_images_and_an_interruption_are_mirrored(run_dir, make_record, make_step, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    writer = RecordWriter.open(run_dir, make_record("wandb.mode=offline"), 0, start_mirror)
    writer.step(make_step(32))
    writer.images("samples", tmp_path / "grid.png", 32)
    writer.status("interrupted", 32)
    writer.close()
    (row,) = history(run_dir.wandb)
    assert (row["samples"]["_type"], row["samples"]["width"], row["loss"]) == ("image-file", 4, make_step(32).loss)
    assert len(list(run_dir.wandb.glob("offline-run-*/files/media/images/samples_32_*.png"))) == 1
    records = wandb_records(run_dir.wandb)
    assert any(record.HasField("preempting") for record in records)
    assert next(record.exit.exit_code for record in records if record.HasField("exit")) == 1


def test_nothing_is_printed(run_offline, capfd, caplog):
    run_offline()
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_row_of_the_past_is_left_out_without_a_word(run_dir, make_record, make_step, capfd):
    mirror = start_mirror(make_record("wandb.mode=offline"), run_dir)
    for images_seen in (64, 32, 96):
        mirror.row(make_step(images_seen))
    mirror.close("done")
    assert [row["_step"] for row in history(run_dir.wandb)] == [64, 96]
    assert capfd.readouterr() == ("", "")


def test_auto_without_a_key_is_offline_and_does_not_ask(run_dir, make_record, capfd):
    mirror = start_mirror(make_record("wandb.mode=auto"), run_dir)
    mirror.close("done")
    assert len(list(run_dir.wandb.glob("offline-run-*"))) == 1
    assert capfd.readouterr() == ("", "")


def test_disabled_is_no_mirror(run_dir, make_record, monkeypatch):
    assert start_mirror(make_record("wandb.mode=disabled"), run_dir) is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start_mirror(make_record("wandb.mode=auto"), run_dir) is None
    assert not run_dir.wandb.exists()


def test_online_without_a_key_is_a_mistake(run_dir, make_record):
    with pytest.raises(ConfigError, match=r"wandb\.mode is online, but W&B has no key\. Run `wandb login`"):
        start_mirror(make_record("wandb.mode=online"), run_dir)


UNREACHABLE = """
import sys
from pathlib import Path
from experiments.records import wandb_mirror
from experiments.records.run_folder import RunDir
from experiments.records.record_types import RunRecord
wandb_mirror.INIT_TIMEOUT_SECONDS = 0.5
wandb_mirror.start_mirror(RunRecord.model_validate_json(sys.argv[2]), RunDir(Path(sys.argv[1]))).close("done")
"""


def test_a_key_in_netrc_without_a_server_becomes_offline_with_one_line(run_dir, make_record, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    netrc = Path(os.environ["NETRC"])
    netrc.write_text(f"machine 127.0.0.1:9\n  login user\n  password {'0' * 40}\n")
    netrc.chmod(0o600)
    run_dir.path.mkdir()
    record = make_record("wandb.mode=auto").model_dump_json()
    arguments = [sys.executable, "-c", UNREACHABLE, run_dir.path, record]
    answer = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stdout) == (0, "")
    (line,) = answer.stderr.splitlines()
    assert line.startswith("W&B does not start online (Failed to get resume status")
    assert line.endswith(f"The run goes on offline, in {run_dir.wandb}.")
    assert len(list(run_dir.wandb.glob("offline-run-*/*.wandb"))) == 1


def test_settings_that_wandb_cannot_read_leave_the_run_without_a_mirror(run_dir, make_record, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    assert start_mirror(make_record("wandb.mode=auto"), run_dir) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "without a mirror" in caplog.messages[-1]


ORPHANED = """
import os, subprocess, sys, time
from pathlib import Path
from experiments.records.run_folder import RunDir
from experiments.records.record_types import RunRecord, StepRow
from experiments.records.wandb_mirror import start_mirror
from experiments.records.writer import RecordWriter
run_dir, row = RunDir(Path(sys.argv[1])), StepRow.model_validate_json(sys.argv[3])
writer = RecordWriter.open(run_dir, RunRecord.model_validate_json(sys.argv[2]), 0, start_mirror)
(service,) = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
os.kill(int(service), 9)
time.sleep(0.3)
for _ in range(20):
    writer.step(row)
writer.status("done", row.images_seen)
writer.close()
"""


def test_a_service_that_dies_costs_one_line_and_no_row(run_dir, make_record, make_step):
    row = make_step(32)
    record = make_record("wandb.mode=offline").model_dump_json()
    arguments = [sys.executable, "-c", ORPHANED, run_dir.path, record, row.model_dump_json()]
    answer = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stdout) == (0, "")
    (line,) = answer.stderr.splitlines()
    assert "The run's folder has every row." in line
    assert [StepRow(**raw) for raw in run_dir.read_rows(run_dir.steps).rows] == [row] * 20
    assert run_dir.read_status().state == "done"
