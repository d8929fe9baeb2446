"""Records are input: whatever stands in a run folder, reading it answers with a line or with what is right in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.errors import RecordError
from experiments.records.record_types import EvalRow, RunRecord, Status, StepRow
from experiments.records.run_folder import RunDir, find_runs, read_jsonl
from experiments.records.strict_reading import read_valid
from experiments.records.writer import RecordWriter, write_status
from experiments.settings_id import settings_id

LARGE = 10**30
STATUS = {"state": "running", "images_seen": 32, "images_total": 64, "heartbeat": 1.0, "pid": 7, "host": "here"}


@pytest.fixture
def started(run_dir, make_record, make_step, make_eval) -> RunDir:
    writer = RecordWriter.open(run_dir, make_record(), 0)
    writer.status("running", 0)
    writer.step(make_step(32))
    writer.evaluation([make_eval(32)])
    writer.close()
    return run_dir


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images_seen", "32"), ("images_seen", True), ("images_seen", -1), ("images_seen", 32.0),
        ("images_seen", LARGE), ("images_total", None), ("heartbeat", "1.0"), ("heartbeat", 1e300), ("pid", -1),
        ("pid", 0), ("pid", LARGE), ("reason", 3), ("state", "asleep"), ("peak_memory_gib", False), ("newer", 1),
    ],
)  # fmt: skip
def test_a_value_of_a_wrong_type_or_size_damages_the_status_and_is_named(run_dir, key, value):
    run_dir.path.mkdir()
    run_dir.status_json.write_text(json.dumps(STATUS | {key: value}))
    with pytest.raises(RecordError, match=rf"status\.json is damaged: {key}: "):
        run_dir.read_status()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"state":"done","state":"failed"}', "the key 'state' is there twice"),
        (b'{"heartbeat":NaN}', "expected value"),
        (b'{"heartbeat":1e999}', "heartbeat: it is larger than any number"),
        (b'{"a":' * 100_000, "recursion limit"),
        (b'{"reason":"\\ud800"}', "hex escape"),
        (b"", "EOF"),
        (b"[]", "it does not hold a JSON object"),
        (b"\x00\xff\x80garbage", "expected value"),
    ],
    ids=["twice", "NaN", "infinity", "deep", "surrogate", "empty", "list", "binary"],
)
def test_what_is_not_one_json_object_is_damaged_and_says_why(run_dir, content, said):
    run_dir.path.mkdir()
    for path, read in ((run_dir.status_json, run_dir.read_status), (run_dir.run_json, run_dir.read_run)):
        path.write_bytes(content)
        with pytest.raises(RecordError, match="is damaged") as raised:
            read()
        assert said in str(raised.value)


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("not-mounted"))


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [a_fifo, a_folder, a_link_to_nothing, a_link_to_a_device, a_link_to_itself])
@pytest.mark.parametrize("name", ["run.json", "status.json", "steps.jsonl", "evals.jsonl"])
def test_what_stands_in_the_place_of_a_file_never_blocks_and_is_named(
    started: RunDir, name: str, make: Callable[[Path], None]
):
    path = started.path / name
    path.unlink()
    make(path)
    read: dict[str, Callable[[], object]] = {
        "run.json": started.read_run,
        "status.json": started.read_status,
        "steps.jsonl": started.last_step,
        "evals.jsonl": lambda: started.read_rows(started.evals),
    }
    with pytest.raises(RecordError, match=rf"{name.replace('.', '[.]')} cannot be read: "):
        read[name]()
    assert [run.path for run in find_runs(started.path)] == [started.path]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": "9.5"}, "loss: Input should be a valid number"),
        ({"loss": True}, "loss: Input should be a valid number"),
        ({"images_seen": LARGE}, "images_seen: "),
        ({"seconds": -1}, "seconds: "),
        ({"grad_norm": None}, "grad_norm: "),
        ({"newer": 1}, "newer: Extra inputs are not permitted"),
    ],
)
def test_a_row_with_a_wrong_value_is_left_out_with_its_line(started, make_step, change, said):
    with started.steps.open("a") as file:
        file.write(json.dumps(make_step(64).model_dump(exclude_none=True) | change) + "\n")
        file.write(make_step(96).model_dump_json(exclude_none=True) + "\n")
    rows, lines, damaged = read_valid(started.steps, StepRow)
    assert ([row["images_seen"] for row in rows], lines) == ([32, 96], [1, 3])
    [(number, reason)] = damaged
    assert number == 2
    assert reason.startswith(said)


@pytest.mark.parametrize("settings", [{"guidance": "2"}, {"steps": [8]}, {"arm": "x"}, {"deep": {"er": 1}}])
def test_settings_of_a_measurement_that_no_table_can_hold_are_refused(make_eval, started, settings):
    with started.evals.open("a") as file:
        file.write(json.dumps(make_eval(64).model_dump(exclude_none=True) | {"settings": settings}) + "\n")
    assert [number for number, _ in read_valid(started.evals, EvalRow)[2]] == [2]


def test_the_last_step_is_the_last_one_whose_values_are_numbers(started, make_step):
    with started.steps.open("a") as file:
        file.write(json.dumps(make_step(64).model_dump(exclude_none=True) | {"loss": "9.5"}) + "\n")
    assert started.last_step()["images_seen"] == 32


def test_a_config_that_does_not_give_its_id_is_damaged(started):
    raw = json.loads(started.run_json.read_text())
    raw["config"]["optim"]["learning_rate"] *= 10
    started.run_json.write_text(json.dumps(raw))
    with pytest.raises(RecordError, match=rf"its config has the id \w+, its config_id is {raw['config_id']}"):
        started.read_run()


def test_a_run_of_an_earlier_version_with_fewer_settings_gives_its_id(started):
    raw = json.loads(started.run_json.read_text())
    del raw["config"]["eval"]["metric_images"], raw["config"]["train"]["implementation"]  # they never counted
    del raw["config"]["routing"]["eval_capacity_factor"]  # which counts where it is there
    raw["config_id"] = settings_id(raw["config"])
    started.run_json.write_text(json.dumps(raw))
    assert started.read_run().config_id == raw["config_id"]


def test_names_that_are_not_unicode_can_be_recorded_and_read(run_dir, make_record):
    name = os.fsdecode(b"caf\xe9")
    record = make_record().model_copy(update={"command": ["ecdit"]})
    record = RunRecord.model_validate({**record.model_dump(), "command": ["train", name]})
    assert record.command == ["train", "caf\\udce9"]
    write_status(run_dir, Status(state="failed", images_total=1, heartbeat=1.0, reason=f"cannot write {name}"))
    assert run_dir.read_status().reason == "cannot write caf\\udce9"


def skipped_below(root: Path) -> dict[str, str]:
    skipped: list[tuple[str, str]] = []
    list(find_runs(root, skipped=skipped))
    return {os.path.relpath(path, root): reason for path, reason in skipped}


def test_what_looks_like_a_run_and_is_not_used_is_named(tmp_path: Path, started: RunDir):
    root = tmp_path / "root"
    lost = RunDir(root / "lost")
    lost.path.mkdir(parents=True)
    started.steps.rename(lost.steps)
    (root / "linked").symlink_to(started.path)
    (root / "unmounted").symlink_to(tmp_path / "disk")
    assert skipped_below(root) == {
        "lost": "it has steps.jsonl but neither run.json nor status.json",
        "linked": f"it is a link, and links are not followed: name {started.path}",
        "unmounted": "it is a link to something that does not exist",
    }


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    assert skipped_below(tmp_path / "file") == {".": "it cannot be read: Not a directory"}


def test_a_file_of_rows_that_is_cut_anywhere_keeps_the_others(started, make_step):
    with started.steps.open("a") as file:
        file.write(make_step(64).model_dump_json(exclude_none=True)[:20])
    read: Any = read_jsonl(started.steps)
    assert [row["images_seen"] for row in read.rows] == [32]
    assert [number for number, _ in read.damaged] == [2]
