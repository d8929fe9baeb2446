"""`ecdit doctor`: what is checked, and what makes it fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from ecdit_cli.app import run
from ecdit_cli.doctor import version_check


def test_this_environment_passes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["doctor", "--json"]) == 0
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"python", "torch", "deepspeed", "wandb", "sweeps", "folder", "processor", "threads", "accelerator"} <= set(
        rows
    )
    assert all(row["state"] in {"ok", "note"} for row in rows.values())
    assert str(tmp_path) in rows["folder"]["found"]


def test_a_folder_that_is_gone_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(["doctor"]) == 1
    assert "Change to a folder you can write to." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "state", "hint"),
    [
        ("2.13.0+cpu", "ok", None),
        ("2.14.0.dev20260101", "ok", None),
        ("2.10.1", "missing", "Install torch>=2.11."),
        (None, "missing", "Install torch>=2.11."),
    ],
)
def test_a_version_out_of_range_is_missing(version: str | None, state: str, hint: str | None) -> None:
    check = version_check("torch", version, SpecifierSet(">=2.11"))
    assert (check.state, check.hint) == (state, hint)
