"""A full disk or an unwritable folder is one clear line, and what was there stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.errors import StorageError
from experiments.records.provenance import host_name
from experiments.records.record_types import Status
from experiments.records.run_folder import RunDir
from experiments.records.storage import write_json_atomic
from experiments.records.writer import RecordWriter, write_status


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's always-full device")
def test_a_full_disk_names_the_file_and_the_way_out(run_dir, make_record, make_step):
    RecordWriter.open(run_dir, make_record(), 0).close()
    run_dir.steps.unlink()
    run_dir.steps.symlink_to("/dev/full")
    writer = RecordWriter.open(run_dir, make_record(), 0)
    with pytest.raises(
        StorageError, match=r"steps\.jsonl: no space left on device\. Free space there and run the same"
    ):
        writer.step(make_step(32))
    writer.close()


@pytest.mark.parametrize("below", ["a-file/run", "a-file"])
def test_a_folder_that_cannot_be_made_names_itself(tmp_path, make_record, below):
    (tmp_path / "a-file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*a-file.*: .*\. Something that is no folder stands in"):
        RecordWriter.open(RunDir(tmp_path / below), make_record(), 0)
    with pytest.raises(StorageError, match="a-file"):
        write_status(RunDir(tmp_path / below), Status(state="planned", images_total=1, heartbeat=0.0))


LIMITED = """
import resource, sys
from pathlib import Path
from experiments.errors import StorageError
from experiments.records.storage import write_json_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    write_json_atomic(Path(sys.argv[1]), {"x": "y" * 200})
except StorageError as error:
    print(error)
"""


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "status.json"
    write_json_atomic(path, {"x": 1})
    before = path.read_bytes()
    answer = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, timeout=60)
    assert "status.json" in answer.stdout
    assert "file too large. Free space" in answer.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["status.json"]


def test_nan_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(tmp_path / "x.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    )


FILL_AND_CONTINUE = """
import sys
from pathlib import Path
from experiments.errors import StorageError
from experiments.records.run_folder import RunDir
from experiments.records.record_types import RunRecord, StepRow
from experiments.records.writer import RecordWriter
disk, record = Path(sys.argv[1]), RunRecord.model_validate_json(sys.argv[2])
row = StepRow.model_validate_json(sys.argv[3])
ballast = disk / "ballast"
ballast.write_bytes(b"x" * 40_000)
run_dir = RunDir(disk / "run")
writer = RecordWriter.open(run_dir, record, 0)
count = 0
try:
    while True:
        writer.step(row)
        count += 1
except StorageError as error:
    print(error)
writer.close()
before = run_dir.read_rows(run_dir.steps)
ballast.unlink()
RecordWriter.open(run_dir, record, row.images_seen).close()
after = run_dir.read_rows(run_dir.steps)
print(count > 0, len(before.rows) == count, before.num_damaged, after.rows == before.rows, after.num_damaged)
"""


@pytest.mark.skipif(not _can_mount(), reason="needs unprivileged mounts")
def test_after_a_really_full_disk_the_same_command_continues_with_every_row(tmp_path, make_record, make_step):
    arguments = [sys.executable, "-c", FILL_AND_CONTINUE, tmp_path, make_record().model_dump_json()]
    mounted = ["sh", "-c", 'mount -t tmpfs -o size=64k none "$0" && exec "$@"', tmp_path]
    answer = subprocess.run(
        ["unshare", "-rm", *mounted, *arguments, make_step(32).model_dump_json()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    message, outcome = answer.stdout.splitlines()
    assert "no space left on device. Free space" in message
    assert outcome == "True True 1 True 0"


def test_a_temporary_file_has_the_name_of_its_machine_and_process(tmp_path, monkeypatch):
    replace, names = os.replace, []
    monkeypatch.setattr(os, "replace", lambda old, new: (names.append(Path(old).name), replace(old, new)))
    write_json_atomic(tmp_path / "x.json", {})
    assert names == [f".x.json.{host_name()}.{os.getpid()}.tmp"]
    assert os.listdir(tmp_path) == ["x.json"]
