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


@pytest.mark.parametrize("field", ["weight_GEC", "token_GEC"])
def test_one_cause_of_several_failures_is_said_once(
    field: str, write_plugin: WritePlugin, capsys: pytest.CaptureFixture[str]
) -> None:
    right = "GroupDecision(token_GEC, weight_GEC, "
    path = write_plugin(**{right: right.replace(field, f"{field}[:, :, 1:]")})
    assert run(["check-router", "stripes", f"--plugin={path}"]) == 1
    out, err = capsys.readouterr()
    rows = out.splitlines()[1:]
    assert len(rows) == len(PROPERTIES)
    assert all(line.split()[-3:] == ["no", "cause", "1"] for line in rows)
    said, summary = err.splitlines()
    kind = "float32" if field == "weight_GEC" else "int64"
    stopped = f"cause 1, which stops {len(PROPERTIES)} of {len(PROPERTIES)} checks"
    assert said.startswith(f"{stopped}: plugin {path}: router 'stripes': decide answers {field}=")
    assert f"{field}={kind} [4, 4, 3], {kind} [4, 4, 4] is expected." in said
    assert summary == f"0 of {len(PROPERTIES)} properties hold for stripes."
    assert run(["check-router", "stripes", "--json"]) == 1
    assert all(field in row["reason"] for row in json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("logits_BTE", "assign answers a Tensor, Assignment is expected."),
        ("super().assign(logits_BTE, x_BTD, context)._replace(weight_M=None)", "assign answers weight_M=a NoneType, "),
        (
            "super().assign(logits_BTE, x_BTD, context)._replace(auxiliary_loss=logits_BTE)",
            "assign answers auxiliary_loss=float32 [",
        ),
    ],
)
def test_an_assignment_that_is_none_is_said(
    answer: str, reason: str, write_plugin: WritePlugin, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"    def assign(self, logits_BTE, x_BTD, context):\n        return {answer}\n\n    def decide"
    path = write_plugin(**{"    def decide": own})
    code = run(["check-router", "stripes", f"--plugin={path}"])
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert f"plugin {path}: router 'stripes': {reason}" in said
    assert "Traceback" not in said


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
