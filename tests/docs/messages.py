"""The messages that the code can print, as patterns: what the documentation quotes is compared with them.

A message is the first argument of an error and its hint is the second; some are made as a pair of both. Each may be an
f-string, whose values match anything, or a name that is assigned a text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from tests.docs.pages import ROOT

PACKAGES = ("ecdit_cli", "sweeps", "analysis", "experiments")
LEAST_FIXED_LETTERS = 12
"""So many letters of a message must be fixed, since one that is all values would match every quotation."""


@cache
def patterns() -> list[re.Pattern[str]]:
    """A pattern for every message with its hint."""
    modules = [ast.parse(path.read_text()) for path in _modules()]
    imported: dict[str, set[str]] = {}
    for module in modules:
        for name, texts in _texts(module.body).items():
            if name.isupper():  # two modules may have a constant of one name
                imported.setdefault(name, set()).update(texts)
    found: set[str] = set()
    for module in modules:
        nodes = list(ast.walk(module))
        texts = imported | _texts(nodes)
        found |= {pattern for node in nodes for pattern in _messages(node, texts)}
    return [re.compile(pattern, flags=re.DOTALL) for pattern in sorted(found)]


def _modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def _texts(nodes: Iterable[ast.AST]) -> dict[str, set[str]]:
    """What each name is assigned in some statements, as patterns."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            is_choice = isinstance(node.value, ast.IfExp)
            values = [node.value.body, node.value.orelse] if is_choice else [node.value]
            found.setdefault(node.targets[0].id, set()).update(_pattern(value, {}) for value in values)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, set()).add(".*")
    return found


def _messages(node: ast.AST, texts: Mapping[str, set[str]]) -> Iterator[str]:
    parts: list[ast.expr] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
        parts = node.args[:2]
    elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
        parts = node.elts
    if parts and isinstance(parts[0], ast.Constant | ast.JoinedStr):
        pattern = " ?".join(_pattern(part, texts) for part in parts)
        if len(re.findall(r"\w", pattern)) >= LEAST_FIXED_LETTERS:
            yield pattern


def _pattern(node: ast.AST, texts: Mapping[str, set[str]]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(part, texts) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _pattern(node.value, texts)
    if isinstance(node, ast.Name) and node.id in texts:
        return f"(?:{'|'.join(sorted(texts[node.id]))})"
    return ".*"
