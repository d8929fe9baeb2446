"""A name that is longer than the file system allows is one line of every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ecdit_cli.app import run

LONG = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        "train --run-dir OUT/LONG",
        "train --run-dir OUT/LONG/run",
        "sweep quickstart --no-calibration --out OUT/LONG",
        "status OUT/LONG",
        "export OUT/LONG",
        "export-weights OUT/LONG OUT/weights",
        "sample OUT/LONG",
        "evaluate OUT/LONG",
        "plot all OUT/LONG",
        "report OUT/LONG",
        "compare-routing OUT/LONG",
        "data check OUT/LONG",
    ],
)
def test_a_long_name_is_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command.replace("OUT", str(tmp_path)).replace("LONG", LONG).split()) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert LONG in line
    assert re.search("name (is )?too long", line)
