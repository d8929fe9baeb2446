"""What is written is read back; a kill loses no row and a resumption doubles none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config.schema import RunConfig
from experiments.errors import RecordError
from experiments.records.record_types import EvalRow, RoutingRow, RunRecord, StepRow
from experiments.records.run_folder import RunDir
from experiments.records.writer import RecordWriter, append_evaluations


@pytest.fixture
def write(run_dir, make_record, make_step, make_eval, make_routing):
    """Start (or resume) the run at `images_seen` and write the rows of every 32 images after it, up to `until`."""

    def run(images_seen: int, until: int) -> None:
        writer = RecordWriter.open(run_dir, make_record(), images_seen)
        for seen in range(images_seen + 32, until + 1, 32):
            writer.step(make_step(seen))
            writer.evaluation([make_eval(seen)])
            writer.routing([make_routing(seen)])
        writer.close()

    return run


def row_files(run_dir: RunDir) -> list[bytes]:
    return [path.read_bytes() for path in (run_dir.steps, run_dir.routing, run_dir.evals)]


def test_rows_are_read_back_as_they_were_written(run_dir, write, make_step, make_eval, make_routing):
    write(0, until=64)
    steps, routing, evals = (run_dir.read_rows(path).rows for path in (run_dir.steps, run_dir.routing, run_dir.evals))
    assert [StepRow(**row) for row in steps] == [make_step(32), make_step(64)]
    assert [RoutingRow(**row) for row in routing] == [make_routing(32), make_routing(64)]
    assert [EvalRow(**row) for row in evals] == [make_eval(32), make_eval(64)]


def test_a_missing_value_is_an_absent_key(run_dir, write):
    write(0, until=32)
    assert "auxiliary_loss" not in run_dir.last_step()


def test_settings_that_are_none_survive_run_json(run_dir, make_record):
    record = make_record("routing=token_choice", "routing.capacity_factor=None")
    RecordWriter.open(run_dir, record, 0).close()
    stored = run_dir.read_run()
    assert stored == record
    assert RunConfig(**stored.config).routing.capacity_factor is None


@pytest.mark.parametrize("checkpoint", [32, 96, 160])
def test_a_resumed_run_has_the_same_rows_as_an_uninterrupted_one(run_dir, write, checkpoint):
    write(0, until=160)
    whole = row_files(run_dir)
    with run_dir.steps.open("ab") as file:
        file.write(b'{"images_seen": 192, "lo')
    write(checkpoint, until=160)
    assert row_files(run_dir) == whole


def test_a_row_of_the_very_start_is_not_doubled(run_dir, make_record, make_eval):
    for images_seen in (0, 0, 32):
        writer = RecordWriter.open(run_dir, make_record(), images_seen)
        if images_seen == 0:
            writer.evaluation([make_eval(0)])
        writer.close()
    assert run_dir.read_rows(run_dir.evals).rows == [make_eval(0).model_dump(exclude_none=True)]


def test_a_complete_row_without_its_newline_is_kept(run_dir, write):
    write(0, until=64)
    whole = run_dir.steps.read_bytes()
    run_dir.steps.write_bytes(whole[:-1])
    write(64, until=64)
    assert run_dir.steps.read_bytes() == whole


def test_run_json_is_that_of_the_first_start(run_dir, make_record):
    first = make_record()
    RecordWriter.open(run_dir, first, 0).close()
    later = first.model_copy(update={"created_at": "2026-01-01T00:00:00+00:00", "host": "cluster"})
    writer = RecordWriter.open(run_dir, later, 0)
    writer.close()
    assert writer.record == run_dir.read_run() == first


def test_a_folder_of_another_config_is_refused_and_left_alone(run_dir, make_record, write):
    write(0, until=64)
    before = row_files(run_dir)
    with pytest.raises(RecordError, match=r"seed is 0 there and 7 here.*--run-dir"):
        RecordWriter.open(run_dir, make_record("seed=7", "wandb.mode=offline", "parallel.zero_stage=2"), 0)
    assert row_files(run_dir) == before


def test_what_does_not_change_the_numbers_may_change_between_starts(run_dir, make_record, write):
    write(0, until=64)
    before = row_files(run_dir)
    RecordWriter.open(run_dir, make_record("parallel.zero_stage=2", "log.every_images=64"), 64).close()
    assert row_files(run_dir) == before


def test_two_processes_never_write_to_one_folder(run_dir, make_record):
    writer = RecordWriter.open(run_dir, make_record(), 0)
    writer.status("running", 0)
    with pytest.raises(RecordError, match=rf"another process \(process {os.getpid()} on .*--run-dir"):
        RecordWriter.open(run_dir, make_record(), 0)
    writer.close()
    RecordWriter.open(run_dir, make_record(), 0).close()


def test_a_refused_start_does_not_keep_the_folder(run_dir, make_record):
    def broken_mirror(record: RunRecord, run_dir: RunDir) -> None:
        raise RecordError("no key")

    with pytest.raises(RecordError, match="no key"):
        RecordWriter.open(run_dir, make_record(), 0, broken_mirror)
    RecordWriter.open(run_dir, make_record(), 0).close()


def test_status_is_a_heartbeat_of_this_process(run_dir, make_record):
    writer = RecordWriter.open(run_dir, make_record(), 0)
    writer.status("failed", 96, reason="loss is nan in layer 3")
    writer.close()
    status = run_dir.read_status()
    assert (status.state, status.images_seen, status.reason, status.pid) == (
        "failed",
        96,
        "loss is nan in layer 3",
        os.getpid(),
    )
    assert status.images_total == make_record().config["train"]["images"]
    assert [path.name for path in run_dir.path.glob(".*.tmp")] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.records.run_folder import RunDir
from experiments.records.record_types import RunRecord, StepRow
from experiments.records.writer import RecordWriter
writer = RecordWriter.open(RunDir(Path(sys.argv[1])), RunRecord.model_validate_json(sys.argv[2]), 0)
for _ in range(500):
    writer.step(StepRow.model_validate_json(sys.argv[3]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_row_and_leaves_the_folder_free(run_dir, make_record, make_step):
    row = make_step(32)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, run_dir.path, make_record().model_dump_json(), row.model_dump_json()],
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    rows = run_dir.read_rows(run_dir.steps)
    assert rows.num_damaged == 0
    assert [StepRow(**raw) for raw in rows.rows] == [row] * 500
    RecordWriter.open(run_dir, make_record(), 32).close()


def test_evaluations_added_later_disturb_nothing(run_dir, write, make_eval):
    write(0, until=64)
    (run_dir.evals).write_bytes(run_dir.evals.read_bytes() + b'{"images_s')
    before = {path: path.read_bytes() for path in run_dir.path.iterdir() if path.is_file()}
    append_evaluations(run_dir, [make_eval(64), make_eval(64)])
    after = {path: path.read_bytes() for path in run_dir.path.iterdir() if path.is_file()}
    assert after.pop(run_dir.evals).startswith(before.pop(run_dir.evals))
    assert after == before
    evals = run_dir.read_rows(run_dir.evals)
    assert [row["images_seen"] for row in evals.rows] == [32, 64, 64, 64]
    assert evals.num_damaged == 1


def test_evaluations_need_the_folder_of_a_run(tmp_path: Path, make_eval):
    with pytest.raises(RecordError, match="does not exist"):
        append_evaluations(RunDir(tmp_path), [make_eval(0)])
    assert list(tmp_path.iterdir()) == []
