"""Docstrings are whole sentences, and every class has a name of its own, so that a newcomer can read and search.

A program cannot judge prose. These rules refuse the fragments that once filled this project ("Of a run.", "As they are
typed.") and were written so that they refuse no good sentence.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.contracts.test_tree import MODULES, ROOT, parsed

FRAGMENT = re.compile(
    r"(Of|As|From|With|Without|By|In|On|At|For|To|Per|Between|The same|What|Whether|Where|Which|Who|Whose|That|How)\b"
)
"""Begins a clause that leans on the name of what it documents, and that has no main verb."""
LABEL = re.compile(r"`[^`]+`[:.,;]")
"""A name and a colon in place of a sentence: "`train`: one run."""
NUM_WORDS = 3
SENTENCE_ENDS = (".", ":")


class Docstring(NamedTuple):
    """A docstring, or the string below a field or constant, with the place and the kind of what it documents."""

    place: str
    kind: str
    text: str


def _documented(path: Path) -> Iterator[Docstring]:
    where = str(path.relative_to(ROOT))
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield Docstring(f"{where}:{getattr(node, 'lineno', 1)}", _kind(path, node), text)
        if isinstance(node, ast.Module | ast.ClassDef):
            for before, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(before, ast.Assign | ast.AnnAssign) and (text := _string(after)) is not None:
                    yield Docstring(f"{where}:{after.lineno}", "field", text)


def _string(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None


def _kind(path: Path, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A command's docstring is its help, in the imperative, and a kernel's tells what one program does."""
    if isinstance(node, ast.Module):
        return "package" if path.name == "__init__.py" else "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    if path.parent.name == "ecdit_cli" and not node.name.startswith("_"):
        return "command"
    is_kernel = any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    return "kernel" if is_kernel else "function"


def _faults(one: Docstring) -> Iterator[str]:
    first, text = one.text.split(maxsplit=1)[0] if one.text.split() else "", one.text.strip()
    if len(text.split()) < NUM_WORDS and one.kind != "field":
        yield "is too short to be a sentence"
    if FRAGMENT.match(text):
        yield f"begins with {first!r}, as a fragment does"
    if LABEL.match(text):
        yield "begins with a name and a colon"
    if not re.match(r"[A-Z0-9`\"'\[(]", text):
        yield "does not begin with a capital letter"
    if not text.split("\n\n")[0].endswith(SENTENCE_ENDS):  # a list or an example may follow
        yield "does not end its first paragraph with a full stop"
    if one.kind in ("function", "package") and not _has_verb(one.kind, text):
        yield "says nothing of what it does: begin with a verb such as `Returns`"


def _has_verb(kind: str, text: str) -> bool:
    """A function's docstring begins with its verb (Returns, Draws, Yields); a package's has one in its first line."""
    if kind == "function":
        return re.match(r"(?!Bytes|Hours|Images|Rows|Seconds|Tokens)[A-Z][a-z]+s\b", text) is not None
    return re.search(r"\b(is|are|[A-Z][a-z]+s|holds|draws|lists)\b", text.splitlines()[0]) is not None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_sentences(path: Path) -> None:
    found = [f"{one.place} {fault}: {one.text[:60]!r}" for one in _documented(path) for fault in _faults(one)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("function", "Of a run."),
        ("function", "As they are typed."),
        ("function", "The number of runs."),
        ("function", "Seconds of the whole training."),
        ("function", "`a, b and c`."),
        ("function", "[B, L, V]."),
        ("function", "returns the loss."),
        ("function", "Returns the loss"),
        ("package", "."),
        ("package", "Procedural captioned scenes, and the batches made of them."),
        ("module", "What data sets of real images are."),
        ("module", "`ecdit train`: one run, from the command line to `done`."),
        ("class", "With which weight a token comes back."),
        ("field", "Of the ends of an interval."),
    ],
)
def test_fragments_are_refused(kind: str, text: str) -> None:
    assert list(_faults(Docstring("here", kind, text)))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("function", "Returns the loss of each image, [B]."),
        ("kernel", "One program sums the rows of one token."),
        ("command", "Train one model. The same command continues it."),
        ("module", "`ecdit train` trains one run to its end."),
        ("class", "The runs of one arm that spent the same FLOPs."),
        ("field", "Maximum."),
    ],
)
def test_sentences_are_not_refused(kind: str, text: str) -> None:
    assert not list(_faults(Docstring("here", kind, text)))


def test_every_class_has_a_name_of_its_own() -> None:
    """Underscores do not count: `_Arm` beside `Arm` is one name with two meanings."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                places[node.name.strip("_")].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not {name: where for name, where in places.items() if len(where) > 1}


COUNTED = re.compile(r"\} of \{[^{}]*\} (?:\w+ )?(?:are|were|have|hold|show)\b")
"""A verb in the plural after `{number} of {all}`, which is wrong for one."""
SIGNED = re.compile(r"\{[^{}]*:\+[.\d]")
"""A number with its sign, which is written `-0.0` where a small negative one is rounded; `z` makes it `+0.0`."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_numbers_in_sentences_and_tables_are_written_right(path: Path) -> None:
    text = path.read_text()
    assert COUNTED.findall(text) == []
    assert SIGNED.findall(text) == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (COUNTED, "{len(others)} of {len(runs)} runs have a loss"),
        (COUNTED, "{kept} of {all:,} are left alone"),
        (SIGNED, "{:+.1%}"),
        (SIGNED, "{change:+.2f}"),
    ],
)
def test_the_patterns_find_what_was_there(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)
