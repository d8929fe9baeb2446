"""Reading a run folder never fails on a file that is being written, and never misreads one that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.errors import RecordError
from experiments.records.run_folder import RunDir, find_runs, read_jsonl
from experiments.records.writer import RecordWriter


@pytest.fixture
def started(run_dir, make_record, make_step) -> RunDir:
    writer = RecordWriter.open(run_dir, make_record(), 0)
    writer.status("running", 0)
    writer.step(make_step(32))
    writer.step(make_step(64))
    writer.close()
    return run_dir


def test_a_last_line_cut_at_any_byte_is_left_out_and_counted(started):
    content = started.steps.read_bytes()
    first = content.index(b"\n") + 1
    for end in range(first, len(content) - 1):
        started.steps.write_bytes(content[:end])
        rows = started.read_rows(started.steps)
        assert [row["images_seen"] for row in rows.rows] == [32]
        assert rows.num_damaged == (end > first)
        assert started.last_step()["images_seen"] == 32


@pytest.mark.parametrize("noise", [b"\x00" * 64, b"[1, 2]", b"\xff\xfe{}", b"null"])
def test_a_line_that_is_no_row_is_counted_and_the_others_are_read(started, noise):
    content = started.steps.read_bytes()
    started.steps.write_bytes(noise + b"\n" + content + noise)
    rows = started.read_rows(started.steps)
    assert [row["images_seen"] for row in rows.rows] == [32, 64]
    assert rows.num_damaged == 2
    assert started.last_step()["images_seen"] == 64


def test_a_file_that_is_not_there_yet_has_no_rows(run_dir):
    assert read_jsonl(run_dir.steps).rows == []
    assert run_dir.last_step() is None
    assert run_dir.read_status() is None
    assert not run_dir.exists()


def test_run_json_cut_at_any_byte_is_called_damaged(started):
    content = started.run_json.read_bytes().rstrip()
    for end in range(0, len(content), 7):
        started.run_json.write_bytes(content[:end])
        with pytest.raises(RecordError, match=r"run\.json is damaged: .*start the run in a new folder"):
            started.read_run()


def test_a_damaged_setting_is_named(started):
    raw = json.loads(started.run_json.read_text())
    started.run_json.write_text(json.dumps({**raw, "world": "two"}))
    with pytest.raises(RecordError, match=r"run\.json is damaged: world: "):
        started.read_run()


@pytest.mark.parametrize(("version", "said"), [
    (99, r"was written by a newer version of ecdit \(schema version 99; this one reads 1\)"),
    (0, "has schema version 0, this ecdit reads 1"), (None, "has schema version None, this ecdit reads 1"),
    ("2" * 99, r"has schema version 2+…2+, this ecdit reads 1"),
])  # fmt: skip
def test_a_foreign_schema_version_is_refused_by_number(started, version, said):
    raw = json.loads(started.run_json.read_text())
    started.run_json.write_text(json.dumps({**raw, "schema_version": version}))
    with pytest.raises(RecordError, match=rf"run\.json {said}\. Use the version of ecdit"):
        started.read_run()


def test_a_missing_run_json_asks_whether_this_is_a_run(run_dir):
    with pytest.raises(
        RecordError, match=r"run\.json does not exist\. Name the folder of a run, which holds this file\."
    ):
        run_dir.read_run()


def test_find_runs_gives_every_run_once_in_order_of_paths(tmp_path: Path):
    for name in ("b/run2", "a", "b/run1", "b/run1/checkpoints/step"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "status.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    found = [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path, tmp_path / "b", tmp_path / "a")]
    assert found == ["a", "b/run1", "b/run2"]
