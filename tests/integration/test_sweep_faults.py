"""A sweep survives what happens to it: afterwards its runs are those of an undisturbed one, to the last digit.

What befalls a single run (signals, a full disk, damaged checkpoints) is in `test_resume.py` and `test_failures.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from experiments.records.run_folder import RunDir, read_jsonl
from experiments.records.run_lock import cut_rows
from sweeps.progress import read_sweep
from tests.sweep_runs import descendants, ended, finish, on_host, run_folders, start_sweep, wait_until
from tests.training_runs import numbers, small_file_system

pytestmark = [pytest.mark.slow, pytest.mark.multi]

STARTED = "importing torch"
"""What every process of a run says first, so that starts can be counted."""


@pytest.fixture(scope="session")
def undisturbed_sweep(tmp_path_factory):
    """The folder of a sweep to which nothing happened."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    said = finish(start_sweep(out))
    assert {state for state, _ in said["states"].values()} == {"done"}
    assert not said["torch"]
    assert num_starts(out) == [1, 1, 1]
    return out


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, large enough for the sweep."""
    with small_file_system(tmp_path, mebibytes=160) as folder:
        yield folder


def num_starts(out):
    """How often each run was started."""
    return [RunDir(folder).log.read_text().count(STARTED) for folder in run_folders(out)]


def assert_same(out, undisturbed):
    """The same runs are done, and their numbers are the same."""
    assert [run.state for run in read_sweep(out).runs] == ["done"] * 3
    for folder, other in zip(run_folders(out), run_folders(undisturbed), strict=True):
        assert folder.name == other.name
        assert numbers(folder) == numbers(other)


def worker_with_rows(out, number, num_rows=3):
    """The process of the run with that number in the order of folders, once it has so many rows and has not ended."""

    def find():
        if len(folders := run_folders(out)) <= number:
            return None
        run = RunDir(folders[number])
        status = run.read_status()
        has_rows = len(read_jsonl(run.steps).rows) >= num_rows
        return status.pid if status is not None and status.state == "running" and has_rows else None

    return find


def checkpoints(folder):
    return sorted(RunDir(folder).checkpoints.glob("images_*"))


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGSEGV, "killed by SIGSEGV"), (signal.SIGSTOP, "gave no sign for 10 s")],
    ids=["segfault", "hangs"],
)
def test_a_run_that_is_lost_is_tried_again_and_touches_no_other(undisturbed_sweep, out, number, told):
    """`test_runner.py` has what is said of SIGKILL; here any signal that a process cannot answer does."""
    process = start_sweep(out, "--timeout", "10" if number == signal.SIGSTOP else "60")
    with ended(process):
        os.kill(wait_until(worker_with_rows(out, 0), process), number)
        said = finish(process)
    assert f"{told}" in said["talk"]
    assert "(1 of 2)" in said["talk"]
    assert num_starts(out) == [2, 1, 1]
    assert_same(out, undisturbed_sweep)


def test_runs_outlive_the_process_that_started_them_and_another_is_made(undisturbed_sweep, out):
    process = start_sweep(out)
    with ended(process):
        wait_until(worker_with_rows(out, 0, num_rows=1), process)
        server = next(child for child in descendants(process.pid) if child.ppid() == process.pid)
        server.kill()
        finish(process)
    assert num_starts(out) == [1, 1, 1]
    assert_same(out, undisturbed_sweep)


@pytest.mark.parametrize("shift", [86400, -86400], ids=["clock a day ahead", "clock a day back"])
def test_a_killed_sweep_is_continued_and_its_runs_go_on_meanwhile(undisturbed_sweep, out, shift):
    process = start_sweep(out)
    with ended(process):
        wait_until(worker_with_rows(out, 0, num_rows=1), process)
        process.kill()
        process.communicate()
    again = start_sweep(out, "--clock-shift", str(shift))
    with ended(again):
        finish(again)
    assert num_starts(out) == [1, 1, 1]
    assert_same(out, undisturbed_sweep)


def test_after_everything_was_killed_and_files_were_damaged_the_sweep_ends_the_same(undisturbed_sweep, out):
    """The rows of one run are cut within a line, the newest checkpoint of the other has a bit flipped or is cut."""
    process = start_sweep(out)
    with ended(process):
        held: set[int] = set()
        wait_until(lambda: len(hold_at_first_checkpoint(out, held)) == 2, process)
        for victim in (process.pid, *(child.pid for child in descendants(process.pid))):
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        process.communicate()
    wait_for_end_of_all(out)
    states = {run.name: run.state for run in read_sweep(out).runs}
    assert set(states.values()) <= {"interrupted", "planned", "done"}
    first, second = (RunDir(folder) for folder in run_folders(out)[:2])
    assert states[first.path.name] == "interrupted"
    first.steps.write_bytes(first.steps.read_bytes()[:-9])
    damage(first, second)
    again = start_sweep(out)
    with ended(again):
        finish(again)
    assert_same(out, undisturbed_sweep)


def hold_at_first_checkpoint(out, held):
    """Stops the first two runs once they have saved, so that neither ends before the other is found."""
    for folder in run_folders(out)[:2]:
        status = RunDir(folder).read_status()
        if checkpoints(folder) and status.state == "running" and status.pid not in held:
            os.kill(status.pid, signal.SIGSTOP)
            held.add(status.pid)
    return held


def wait_for_end_of_all(out):
    """A killed process is there for a moment still."""
    deadline = time.monotonic() + 10
    while any(run.state == "running" for run in read_sweep(out).runs):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def damage(first, second):
    """A bit flipped in the newest checkpoint of one run, the older ones kept; that of the other cut."""
    flipped = checkpoints(first.path)[-1] / "optimizer.safetensors"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut = checkpoints(second.path)[-1] / "weights.safetensors"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    for run in (first, second):
        if len(checkpoints(run.path)) == 1:  # then there is nothing older to go on from, which is the user's to decide
            shutil.rmtree(run.path)


def test_rows_cut_at_any_byte_are_read_and_continued_without_loss(undisturbed_sweep, tmp_path):
    """What a kill leaves of the last line: it is never taken for a row, and no row before it is lost."""
    whole = RunDir(run_folders(undisturbed_sweep)[0]).steps.read_bytes()
    lines = whole.splitlines(keepends=True)
    last, before = lines[-1], b"".join(lines[:-1])
    path = tmp_path / "steps.jsonl"
    for num_bytes in range(len(last)):
        path.write_bytes(before + last[:num_bytes])
        assert len(read_jsonl(path).rows) == len(lines) - 1 + (num_bytes == len(last) - 1)
        cut_rows(path, images_seen=80)
        assert path.read_bytes() == before


@pytest.fixture(params=["one machine", "two machines"])
def other_host(request):
    """Where the second of two sweeps runs."""
    if request.param == "one machine":
        return None
    if subprocess.run([*on_host("elsewhere"), "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a host name of its own needs root")
    return "elsewhere"


def test_two_sweeps_at_once_share_the_runs(undisturbed_sweep, out, other_host):
    one, other = start_sweep(out), start_sweep(out, host=other_host)
    with ended(one, other):
        both = [finish(one), finish(other)]
    for said in both:
        assert {state for state, _ in said["states"].values()} == {"done"}
    assert num_starts(out) == [1, 1, 1]
    assert "another sweep is training it" in both[0]["talk"] + both[1]["talk"]
    assert_same(out, undisturbed_sweep)


def test_on_a_full_disk_runs_fail_clearly_and_the_same_sweep_continues(undisturbed_sweep, small_disk):
    out = small_disk / "out"
    process = start_sweep(out)
    with ended(process):
        wait_until(lambda: run_folders(out) and checkpoints(run_folders(out)[0]), process)
        with (small_disk / "ballast").open("wb") as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(1 << 16))
                ballast.flush()
        said = finish(process, exit_code=1)
    failed = [reason for state, reason in said["states"].values() if state == "failed"]
    assert failed
    assert any("no space left on device" in (reason or "") for reason in failed)
    (small_disk / "ballast").unlink()
    again = start_sweep(out)
    with ended(again):
        finish(again)
    assert_same(out, undisturbed_sweep)


def test_a_wandb_server_that_does_not_answer_stops_no_run(undisturbed_sweep, out, tmp_path):
    environment = {
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": "0" * 40,
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "none"),
    }
    process = start_sweep(out, "--num-runs", "1", "--settings", "wandb.mode=online", environment=environment)
    with ended(process):
        finish(process)
    (folder,) = run_folders(out)
    assert "W&B does not start online" in RunDir(folder).log.read_text()
    assert numbers(folder) == numbers(undisturbed_sweep / "runs" / folder.name)
