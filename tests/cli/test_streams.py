"""A reader that goes, a full disk, a closed stream: one line or none, never a traceback, and stderr stops nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("presets", "presets --json", "plot --list", "--help", "train --dry-run", "train --dry-run --json")
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's always-full device")


def ecdit(command: str, shell: str) -> subprocess.CompletedProcess[str]:
    """`shell`, in which ECDIT is the command."""
    words = f"{sys.executable} -m ecdit_cli {command}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", shell.replace("ECDIT", words)], capture_output=True, text=True, env=environment, timeout=120,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_stdout_is_one_line(command: str) -> None:
    ended = ecdit(command, "ECDIT >/dev/full")
    assert ended.returncode == 1
    assert ended.stderr == "error: cannot write to standard output: no space left on device.\n"


@pytest.mark.parametrize("command", COMMANDS[:2])
def test_a_closed_stdout_is_one_line(command: str) -> None:
    ended = ecdit(command, "ECDIT >&-")
    assert ended.returncode == 1
    assert ended.stderr == "error: cannot write to standard output: bad file descriptor.\n"


@pytest.mark.parametrize("command", COMMANDS[:2])
def test_a_reader_of_stdout_that_has_gone_is_silent(command: str) -> None:
    ended = ecdit(command, "ECDIT | true; exit ${PIPESTATUS[0]}")
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("broken", ["2>/dev/full", "2>&-", "2> >(true)", "<&- 2>&-"])
def test_what_cannot_be_said_stops_nothing(broken: str) -> None:
    ended = ecdit("train --dry-run --json", f"sleep 0.2; ECDIT {broken}")
    assert ended.returncode == 0
    assert ended.stdout.startswith("{")
    ended = ecdit("train model=none", f"ECDIT {broken}")
    assert ended.returncode == 2
    assert ended.stdout == ""


def test_a_mistake_with_a_full_stdout_is_the_mistake_alone() -> None:
    ended = ecdit("presets none", "ECDIT >/dev/full")
    assert ended.returncode == 2
    assert ended.stderr.count("error: ") == 1
    assert "Traceback" not in ended.stderr


def test_a_character_that_the_terminal_lacks_is_an_escape() -> None:
    ended = ecdit("presets S", "PYTHONIOENCODING=ascii ECDIT")
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Or what a library prints would end up in it."""
    script = (
        "from ecdit_cli._streams import guard_streams; guard_streams(); import os;"
        f"file = open({str(tmp_path / 'rows')!r}, 'w'); print(file.fileno(), file=file)"
    )
    subprocess.run(["bash", "-c", f'{sys.executable} -c "{script}" <&- >&- 2>&-'], check=True, timeout=60)
    assert int((tmp_path / "rows").read_text()) > 2
