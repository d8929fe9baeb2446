"""The tables of the pages in docs/study are those that the committed runs give."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

STUDY = Path(__file__).parents[3] / "docs" / "study"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(STUDY / "renew_tables.py"))


@pytest.mark.parametrize("page", ["blocks-and-objectives.md", "upcycling.md"])
def test_the_tables_of_a_page_are_those_of_its_runs(page: str, program: dict[str, Any]) -> None:
    text = (STUDY / page).read_text()
    assert "<!-- table: " in text
    assert program["renewed"](text) == text


def test_every_table_stands_on_a_page(program: dict[str, Any]) -> None:
    pages = "".join(path.read_text() for path in STUDY.glob("*.md"))
    assert set(program["TABLES"]) == {found[1] for found in program["MARKED"].findall(pages)}


def test_another_number_of_a_run_is_another_page(program: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (STUDY / "upcycling.md").read_text()
    runs = program["upcycling"]()
    runs["evals.val_loss"] += 0.01
    monkeypatch.setitem(program["upcycling_table"].__globals__, "upcycling", lambda: runs)
    assert program["renewed"](text) != text
