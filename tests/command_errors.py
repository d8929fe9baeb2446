"""Runs a command that is refused, in this process, and returns what it says."""

from __future__ import annotations

import pytest

from ecdit_cli.app import run


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Returns the last line of stderr, which must be an error, of a command that ends with `code`."""
    assert run(arguments) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    return last
