"""Rules of the house that a tool does not hold."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ecdit_cli", "sweeps", "analysis", "experiments")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN_DRAWERS = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_TRAINING_LOOP_LINES = 80


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_there_are_modules_to_hold_to_the_rules() -> None:
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_named_for_what_it_is_and_says_so(path: Path) -> None:
    assert not FORBIDDEN_DRAWERS & {part.strip("_") for part in (*path.relative_to(ROOT).parent.parts, path.stem)}
    assert ast.get_docstring(parsed(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    limit = MAX_TRAINING_LOOP_LINES if path == ROOT / "experiments/training/loop.py" else MAX_FUNCTION_LINES
    functions = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    too_long = [f.name for f in functions if f.end_lineno is not None and f.end_lineno - f.lineno + 1 > limit]
    assert not too_long
