"""The fast way reads the numbers that JSON has, and refuses every file that is not the same keys on every line."""

from __future__ import annotations

import json
import random

import pytest

from analysis.step_rows import same_keys_columns

ROWS = b'{"images_seen":16,"loss":0.4}\n{"images_seen":32,"loss":1e-05}\n'


def test_every_number_is_the_one_that_json_reads() -> None:
    draw = random.Random(0)
    rows = [{"images_seen": i, "loss": draw.lognormvariate(0, 30), "rate": draw.uniform(-1, 1)} for i in range(999)]
    columns = same_keys_columns("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode())
    assert columns is not None
    assert {key: list(values) for key, values in columns.items()} == {
        key: [row[key] for row in rows] for key in rows[0]
    }


@pytest.mark.parametrize("content", [ROWS, ROWS[:-1]])
def test_the_last_line_may_lack_its_end(content: bytes) -> None:
    columns = same_keys_columns(content)
    assert columns is not None
    assert (list(columns["images_seen"]), list(columns["loss"])) == ([16, 32], [0.4, 1e-05])


@pytest.mark.parametrize(
    "line",
    [
        b'{"images_seen":48,"loss":0.3',
        b'{"images_seen":48,"loss":0.3\n{"images_seen":64,"loss":0.3}',
        b'{"images_seen":48,"lo\n{"images_seen":48,"loss":0.3}',
        b'{"images_seen":48,"loss":0{"images_seen":48,"loss":0.3}',
        b'{"images_seen":48}',
        b'{"images_seen":48,"loss":0.3,"more":1}',
        b'{"images_seen":48,"lost":0.3}',
        b'{"loss":0.3,"images_seen":48}',
        b'{"images_seen":48,"loss":null}',
        b'{"images_seen":48,"loss":"0.3"}',
        b'{"images_seen":48,"loss":true}',
        b'{"images_seen":48,"loss":[0.3]}',
        b'{"images_seen":48,"loss":0.3}}',
        b'{"images_seen":48,"loss":{"loss":0.3}}',
        b'{"images_seen":48,"loss":0.3},',
        b'{"images_seen":,"loss":0.3}',
        b'"images_seen":48,"loss":0.3}',
        b"[48, 0.3]",
        b"\xff",
    ],
)
def test_a_file_with_any_other_line_is_refused(line: bytes) -> None:
    assert same_keys_columns(ROWS) is not None
    assert same_keys_columns(ROWS + line + b"\n") is None
    assert same_keys_columns(line + b"\n" + ROWS) is None


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}", b"12", b"[1]", b'{"loss":1,"loss":2}', b'{"loss": 1, "seconds": 2}']
)
def test_what_has_no_such_lines_is_refused(content: bytes) -> None:
    assert same_keys_columns(content) is None
