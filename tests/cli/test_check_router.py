"""`ecdit check-router` says which properties hold, and ends with 1 where one does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecdit_cli.app import run
from experiments.layers.properties import PROPERTIES
from tests.unit.plugins.conftest import EXAMPLE, WritePlugin, no_plugins, write_plugin

__all__ = ["no_plugins", "write_plugin"]


@pytest.mark.parametrize("words", [["check-router", "switch"], ["--plugin", str(EXAMPLE), "check-router", "stripes"]])
def test_a_router_with_every_property(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["property"] for row in json.loads(out)] == list(PROPERTIES)
    assert all(row["holds"] for row in json.loads(out))
    assert err == f"{len(PROPERTIES)} of {len(PROPERTIES)} properties hold for {words[-1]}.\n"


def test_what_fails_is_said(write_plugin: WritePlugin, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_plugin(**{".gather(2, token_GEC)": ".gather(2, token_GEC).detach()"})
    assert run(["check-router", "stripes", f"--plugin={path}"]) == 1
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if line.startswith("gradients reach every parameter "))
    assert line.split()[4:] == ["no", "no", "gradient", "reaches", "router.weight_DE", "in", "training."]
    assert "properties hold for stripes." in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swich"], "routing.name='swich' is not 'dense', "),
        (["dense"], "dense has no router to check. Choose from: expert_choice, "),
        (["stripes", "--plugin", "nowhere.py"], "nowhere.py cannot be read: No such file or directory."),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["check-router", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
