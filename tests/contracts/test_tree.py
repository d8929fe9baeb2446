"""Rules of the house that a tool does not hold."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from experiments.config.routers import routed_names

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


def test_no_two_modules_have_one_name() -> None:
    """Whoever looks for a name finds one file. Commands and figures are named for what a user types."""
    typed = {ROOT / "ecdit_cli", ROOT / "analysis" / "figures"}
    names = [path.stem for path in MODULES if path.parent not in typed and not path.stem.startswith("__")]
    assert sorted(name for name, count in Counter(names).items() if count > 1) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    limit = MAX_TRAINING_LOOP_LINES if path == ROOT / "experiments/training/loop.py" else MAX_FUNCTION_LINES
    functions = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    too_long = [f.name for f in functions if f.end_lineno is not None and f.end_lineno - f.lineno + 1 > limit]
    assert not too_long


def router_lists(tree: ast.Module) -> list[int]:
    """The lines at which a test goes through two routers or more by name, so that a new one would escape it."""
    named = set(routed_names())
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "parametrize" and len(call.args) == 2:
            values = call.args[1].elts if isinstance(call.args[1], ast.List | ast.Tuple) else []
            words = {str(each.value).removeprefix("routing=") for each in values if isinstance(each, ast.Constant)}
            found += [call.lineno] if len(words & named) > 1 else []
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.name)
def test_routers_are_listed_in_their_registry_alone(path: Path) -> None:
    assert not router_lists(parsed(path))


def test_a_list_of_routers_is_found() -> None:
    for words in ('["switch", "token_choice"]', '("routing=switch", "dense", "routing=expert_choice")'):
        assert router_lists(ast.parse(f"import pytest\npytest.mark.parametrize('name', {words})")) == [2]
    assert not router_lists(ast.parse("pytest.mark.parametrize('name', ['switch', 'dense'])"))
