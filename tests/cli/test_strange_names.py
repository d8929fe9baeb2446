"""Names of runs and reasons are data: no command stumbles over them, or drops the runs beside them, or obeys them."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ecdit_cli.app import run
from experiments.records.run_folder import RunDir

Captured = pytest.CaptureFixture[str]
WriteRun = Callable[..., RunDir]
SETTINGS: dict[str, Any] = {"train": {"images": 3200}, "eval": {"every_images": 1600}}
NAMES = (
    "$\\frac{$", "[red]", "[bold]", "\x1b[31mred", "\x1b]0;title\x07", "=1+1", "a|b`c", "<script>alert(1)<",
    "two\nlines", "\u202etxt", os.fsdecode(b"caf\xe9"),
)  # fmt: skip
NOT_SHOWN = ("\x1b", "\x07", "\u202e", "\udce9")


@pytest.fixture
def runs(tmp_path: Path, write_run: WriteRun) -> Path:
    """A run for each name, a plain one, and one that has failed for a reason with gloo's own path in it."""
    for seed, name in enumerate(("plain", *NAMES)):
        settings = SETTINGS | {"seed": seed, "routing": {"name": "dense" if seed % 2 else "expert_choice"}}
        write_run(tmp_path / "runs" / name, settings, lambda images: 64 / images, name="x", inference_seconds=0.01)
    reason = "[/__w/pytorch/gloo/pair.cc:534] closed\x1b[2J [bold]"
    write_run(tmp_path / "runs" / "failed", SETTINGS | {"seed": 99}, lambda n: 1.0, state="failed", reason=reason)
    return tmp_path / "runs"


def executed(words: list[str], capsys: Captured) -> tuple[str, str]:
    code = run(words)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    for text in (captured.out, captured.err):
        assert not any(character in text for character in NOT_SHOWN)
    return captured.out, captured.err


def test_status_has_a_line_for_each(runs: Path, capsys: Captured) -> None:
    out, _ = executed(["status", str(runs)], capsys)
    assert len(out.splitlines()) == 1 + len(NAMES) + 2
    assert "[/__w/pytorch/gloo/pair.cc:534] closed\\x1b[2J [bold]" in out
    rows = json.loads(run_json(["status", str(runs), "--json"], capsys))["runs"]
    assert {row["name"] for row in rows} == {"plain", "failed", *NAMES}


def run_json(words: list[str], capsys: Captured) -> str:
    assert run(words) == 0
    return capsys.readouterr().out


def test_status_at_a_terminal_shows_markup_as_it_is(
    runs: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["status", str(runs)]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "[/__w/pytorch/gloo/pair.cc:534] closed\\x1b[2J [bold]" in out
    assert not any(character in out for character in NOT_SHOWN)


def test_export_has_a_row_for_each_and_no_formula(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    executed(["export", str(runs), "--out", str(tmp_path / "table")], capsys)
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) == len(NAMES) + 2
    assert "'=1+1" in set(table["run"])
    assert "caf\\udce9" in set(table["run"])
    assert pd.read_parquet(tmp_path / "table.parquet")["evals.val_loss"].notna().all()
    lines = (tmp_path / "table.md").read_text().splitlines()
    cells = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert len(cells) == 2  # of the two tables


@pytest.mark.parametrize("words", [["plot", "routing"], ["plot", "loss-convergence"], ["compare-routing"]])
def test_figures_are_drawn_of_all_but_what_is_no_unicode(
    runs: Path, tmp_path: Path, words: list[str], capsys: Captured
) -> None:
    _, err = executed([*words, str(runs), "--out", str(tmp_path / "out")], capsys)
    assert f"Left out: 2; used: {len(NAMES)} runs." in err
    assert "caf\\udce9: its path is not valid Unicode" in err
    for file in (tmp_path / "out").iterdir():
        if file.suffix != ".png":
            assert not any(character in file.read_text() for character in NOT_SHOWN)


@pytest.mark.slow
def test_a_report_shows_names_and_runs_nothing(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    executed(["report", str(runs), "--out", str(tmp_path / "out")], capsys)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<script") == 1
    assert not any(character in page + (tmp_path / "out" / "report.md").read_text() for character in NOT_SHOWN)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert rules[rule] == f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'"
    assert " style=" not in page
    assert not re.findall(r"<[^>]* on\w+=", page)
