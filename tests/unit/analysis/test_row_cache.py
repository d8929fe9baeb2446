"""What the cache answers is what the files hold, whatever happens to either of them."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import read_runs, row_cache
from analysis.load_records import Records, load_records
from analysis.read_rows import ReadFile, read_file
from analysis.row_cache import CachePlace, cache_folder, places, read_files, remove_old
from analysis.row_columns import RowKind
from experiments.benchmarks.study_folders import study_plan, write_runs
from experiments.records.record_types import EvalRow, StepRow
from experiments.records.run_folder import RunDir, find_runs
from sweeps.folder import SweepFolder

STEP = {
    "images_seen": 16, "flops": 1e9, "seconds": 0.5, "loss": 0.4, "learning_rate": 1e-3, "grad_norm": 0.1,
    "images_per_second": 32.0,
}  # fmt: skip
EVAL = {"images_seen": 16, "metric": "val_loss", "value": 0.4, "num_samples": 64, "seed": 0, "weights": "raw"}
SETTINGS = (
    {},
    None,
    {"guidance": 2.0},
    {"guidance": 2},
    {"steps": 24, "sampler": "heun"},
    {"word": "\u00e9 \U0001f600"},
)
RUNS = 24


def refuse(reason: str) -> None:
    raise AssertionError(reason)


def line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode()


def awkward_content(draw: random.Random, kind: RowKind) -> bytes:
    """Lines of rows, some of them cut, repeated, out of order, without a finite number or no rows at all."""
    lines = []
    for images in range(draw.randrange(12)):
        changes: dict[str, Any] = {"images_seen": draw.choice([images, images, 3])}
        if kind is StepRow:
            changes |= {"loss": draw.choice([0.1 + draw.random(), 1e-300, 3, -0.0, float("nan"), float("inf"), "x"])}
            changes |= {"auxiliary_loss": draw.random()} if draw.random() < 0.3 else {}
        else:
            changes |= {"metric": draw.choice(["val_loss", 'm:\u00fc"', "val_loss_t1"]), "value": draw.random()}
            changes |= {"settings": draw.choice(SETTINGS)} if draw.random() < 0.7 else {}
            changes |= {"while_training": True, "interval_low": 0.1} if draw.random() < 0.3 else {}
        text = line((STEP if kind is StepRow else EVAL) | changes)
        lines.append(draw.choice([text, text, text, text, text[: draw.randrange(len(text))], b"", b"\xff", b"[1]"]))
    return b"\n".join(lines) + draw.choice([b"", b"\n"])


def write_old(path: Path, content: bytes) -> None:
    """Writes a file that has not changed lately."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1e9, 1e9))


def assert_equal(mine: list[ReadFile], theirs: list[ReadFile]) -> None:
    assert [file.left_out for file in mine] == [file.left_out for file in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one.columns.keys() == other.columns.keys()
        for name, values in one.columns.items():
            assert values.dtype == other.columns[name].dtype
            if values.dtype == object:
                assert list(map(repr, values)) == list(map(repr, other.columns[name]))
            else:
                assert values.tobytes() == other.columns[name].tobytes()


@pytest.fixture
def place(tmp_path: Path) -> CachePlace:
    [found] = places(str(tmp_path / "runs"), ["a"], tmp_path / "cache")
    assert found is not None
    return found


def is_read_again(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The list of the files that are read from now on."""
    read: list[Path] = []

    def reading(path: Path, kind: RowKind) -> ReadFile:
        read.append(path)
        return read_file(path, kind)

    monkeypatch.setattr(row_cache, "read_file", reading)
    return read


@pytest.mark.parametrize("kind", [StepRow, EvalRow])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_kept_equals_what_is_read(
    kind: RowKind, seed: int, tmp_path: Path, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    paths = [tmp_path / "runs" / f"run {number}" / "rows.jsonl" for number in range(RUNS)]
    for path in paths:
        write_old(path, awkward_content(draw, kind))
    first = read_files(paths, kind, place, refuse)
    read = is_read_again(monkeypatch)
    assert_equal(read_files(paths, kind, place, refuse), [read_file(path, kind) for path in paths])
    assert_equal(first, [read_file(path, kind) for path in paths])
    assert read == []


def test_only_what_changed_is_read_again(tmp_path: Path, place: CachePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "runs" / name / "steps.jsonl" for name in "abcd"]
    for path in paths[:3]:
        write_old(path, line(STEP) + b"\n")
    read_files(paths[:3], StepRow, place, refuse)
    write_old(paths[1], line(STEP | {"loss": 0.9}) + b"\n")  # as long as before, and as old
    write_old(paths[3], line(STEP) + b"\n")
    read = is_read_again(monkeypatch)
    found = read_files(paths, StepRow, place, refuse)
    assert read == [paths[1], paths[3]]
    assert [file.columns["loss"].tolist() for file in found] == [[0.4], [0.9], [0.4], [0.4]]


def test_a_file_that_has_just_changed_is_not_kept(
    tmp_path: Path, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "a" / "steps.jsonl"
    write_old(path, line(STEP))
    os.utime(path)
    read_files([path], StepRow, place, refuse)
    read = is_read_again(monkeypatch)
    read_files([path], StepRow, place, refuse)
    assert read == [path]


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "a" / "steps.jsonl"
    write_old(path, line(STEP))

    def reading(path: Path, kind: RowKind) -> ReadFile:
        found = read_file(path, kind)
        write_old(path, line(STEP | {"loss": 0.9}))
        return found

    monkeypatch.setattr(row_cache, "read_file", reading)
    read_files([path], StepRow, place, refuse)
    monkeypatch.setattr(row_cache, "read_file", read_file)
    [file] = read_files([path], StepRow, place, refuse)
    assert file.columns["loss"].tolist() == [0.9]


def test_an_entry_that_is_damaged_anywhere_counts_as_absent(tmp_path: Path, place: CachePlace) -> None:
    path = tmp_path / "runs" / "a" / "evals.jsonl"
    write_old(path, line(EVAL) + b"\n")
    [whole] = read_files([path], EvalRow, place, refuse)
    entry = place.file(EvalRow)
    content = entry.read_bytes()
    damaged = [content[:length] for length in range(0, len(content), 7)]
    damaged += [content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in range(len(content))]
    for each in damaged:
        entry.write_bytes(each)
        assert_equal(read_files([path], EvalRow, place, refuse), [whole])
    assert entry.read_bytes() == content


def test_entries_grow_in_number_without_reading_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "RUNS_OF_AN_ENTRY", 4)
    paths = [tmp_path / "runs" / str(number) / "steps.jsonl" for number in range(30)]
    for path in paths:
        write_old(path, line(STEP))

    def read_all(some: list[Path]) -> None:
        found = places(str(tmp_path / "runs"), [path.parent.name for path in some], tmp_path / "cache")
        for place in dict.fromkeys(found):
            read_files([path for path, its in zip(some, found, strict=True) if its == place], StepRow, place, refuse)

    read_all(paths[:12])
    read = is_read_again(monkeypatch)
    read_all(paths)
    assert sorted(read) == sorted(paths[12:])


def test_the_least_used_entries_are_removed_and_what_a_killed_process_left(tmp_path: Path) -> None:
    folder = tmp_path / "rows" / "version"
    for name, when, size in (
        ("old.rows", 1e9, 60),
        ("used.rows", 2e9, 60),
        ("left.tmp", 1e9, 9),
        ("new.rows", 3e9, 30),
    ):
        write_old(folder / "runs" / name, bytes(size))
        os.utime(folder / "runs" / name, (when, when))
    remove_old(folder, max_bytes=100)
    assert sorted(path.name for path in folder.glob("*/*")) == ["new.rows", "used.rows"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep whose rows are worth keeping, and a folder for the cache."""
    monkeypatch.setattr(read_runs, "MIN_KEPT_BYTES", 1)
    monkeypatch.setattr(row_cache, "SETTLED_SECONDS", -1.0)
    monkeypatch.setenv("ECDIT_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "study"
    write_runs(SweepFolder(folder), study_plan(12, 10), 10, 2)
    return folder


def assert_same_records(mine: Records, theirs: Records) -> None:
    for name in ("runs", "steps", "evals"):
        pd.testing.assert_frame_equal(getattr(mine, name), getattr(theirs, name), check_exact=True)
    assert mine.left_out == theirs.left_out


def test_records_are_those_of_the_folders_and_nothing_is_written_there(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    first, again = load_records([study]), load_records([study])
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before
    monkeypatch.setenv("ECDIT_CACHE_DIR", "off")
    without = load_records([study])
    assert len(without.runs) == 12
    assert_same_records(first, without)
    assert_same_records(again, without)


def test_one_more_row_is_seen(study: Path) -> None:
    before = load_records([study])
    [run, *_] = find_runs(study)
    with run.evals.open("a") as file:
        file.write(json.dumps(EVAL | {"metric": "new"}) + "\n")
    after = load_records([study])
    assert len(after.evals) == len(before.evals) + 1
    assert np.count_nonzero(after.evals["metric"] == "new") == 1


def test_a_cache_that_cannot_be_written_is_said_once_and_stops_nothing(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ECDIT_CACHE_DIR", str(tmp_path / "file"))
    said: list[str] = []
    assert len(load_records([study], tell=said.append).runs) == 12
    [reason] = said
    assert reason.startswith("The rows are not kept for the next command: cannot write ")
    assert reason.endswith(". ECDIT_CACHE_DIR names another folder, or is off.")


def test_the_folder_of_the_cache_is_the_usual_one_or_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECDIT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/usual")
    found = cache_folder()
    assert found is not None
    assert found.parent == Path("/usual/ecdit/rows")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification says to ignore it
    monkeypatch.setenv("HOME", "/home/somebody")
    found = cache_folder()
    assert found is not None
    assert found.parent == Path("/home/somebody/.cache/ecdit/rows")
    monkeypatch.setenv("ECDIT_CACHE_DIR", "off")
    assert cache_folder() is None


def test_a_study_for_measuring_is_read_without_a_remark(study: Path) -> None:
    records = load_records([study])
    assert records.left_out == ()
    assert records.diverged is None
    assert len(records.steps) == 12 * 10
    assert {RunDir(Path(run)).read_run().sweep for run in records.runs["run"]} == {"study"}
