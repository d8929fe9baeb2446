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
    ],
)
def test_a_long_name_is_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command.replace("OUT", str(tmp_path)).replace("LONG", LONG).split()) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert LONG in line
    assert re.search("name (is )?too long", line)


def test_a_long_name_of_a_data_set_is_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of a data set may come from a stored configuration, so its name is shortened."""
    assert run(["data", "check", str(tmp_path / LONG)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "x" * 50 in line
    assert "is not a folder" in line
    assert len(line) < 700  # the name appears twice, and whole it would take 700 for itself
