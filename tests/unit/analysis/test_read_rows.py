"""Rows of steps are read exactly, and a line that is none is named and takes no other with it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from analysis.read_rows import RowTable, as_table, read_file
from experiments.records.record_types import StepRow
from experiments.records.run_folder import RunDir

STEP = {
    "images_seen": 16, "flops": 1e9, "seconds": 0.5, "loss": 0.4, "learning_rate": 1e-3, "grad_norm": 0.1,
    "images_per_second": 32.0,
}  # fmt: skip


def line(**changes: object) -> bytes:
    return json.dumps(STEP | changes, separators=(",", ":")).encode()


ROWS = line() + b"\n" + line(images_seen=32, loss=1e-05) + b"\n"
OTHER = line(images_seen=48)


def read(folder: Path, content: bytes) -> RowTable:
    run = RunDir(folder)
    run.steps.write_bytes(content)
    return as_table([str(folder)], [read_file(run.steps, StepRow)], StepRow)


def test_every_number_is_the_one_that_json_reads(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [STEP | {"images_seen": i, "loss": draw.lognormvariate(0, 9), "seconds": draw.random()} for i in range(999)]
    table = read(tmp_path, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode())
    assert table.left_out == []
    for key in STEP:
        assert table.frame[key].to_list() == [row[key] for row in rows]


@pytest.mark.parametrize("content", [ROWS, ROWS[:-1]])
def test_the_last_line_may_lack_its_end(tmp_path: Path, content: bytes) -> None:
    table = read(tmp_path, content)
    assert table.left_out == []
    assert table.frame["loss"].to_list() == [0.4, 1e-05]


@pytest.mark.parametrize(
    "bad",
    [
        OTHER[:-1],
        OTHER.replace(b'"loss"', b'"lo'),
        OTHER.replace(b"0.4", b'0{"images_seen":48'),
        b'{"images_seen":48}',
        OTHER.replace(b'"loss"', b'"lost"'),
        line(images_seen=48, loss=None),
        line(images_seen=48, loss="0.3"),
        line(images_seen=48, loss=True),
        line(images_seen=48, loss=[0.3]),
        line(images_seen=48, loss={"loss": 0.3}),
        OTHER + b"}",
        OTHER + b",",
        OTHER.replace(b":48", b":"),
        OTHER[1:],
        OTHER[:-1] + b',"loss":0.5}',
        b"{}",
        b"12",
        b"[48, 0.3]",
        b"\xff",
    ],
)
def test_a_line_that_is_no_step_is_named_and_the_others_are_read(tmp_path: Path, bad: bytes) -> None:
    for content, number in ((ROWS + bad + b"\n", 3), (bad + b"\n" + ROWS, 1)):
        table = read(tmp_path, content)
        assert table.frame["images_seen"].to_list() == [16, 32]
        [(run, reason)] = table.left_out
        assert run == str(tmp_path)
        assert reason.startswith(f"1 row of steps.jsonl damaged (line {number}: ")


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_a_file_without_lines_has_no_rows(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content).frame.empty
