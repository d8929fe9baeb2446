"""Writes the tests and laws of the second study as tables in Markdown and as rows, for `second_study_page.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from second_study_results import CONTRADICTED, DATA, SUPPORTED, UNDECIDED, FamilyLaw, Test, verdicts

from analysis.claims import corrections
from analysis.escaping import markdown_text
from analysis.run_table import markdown

NOTHING = "Nothing was measured that answers this."
WORDS = ("data", "arm", "family", "law", "verdict")
"""The columns of words, which are aligned left."""
MARKS = {SUPPORTED: " ▲", CONTRADICTED: " ▼", UNDECIDED: ""}


@dataclass(frozen=True)
class Question:
    """A question that tests answer: its title, what a value is, and the tests, which are corrected together."""

    title: str
    value: str
    tests: tuple[Test, ...]


def rows_of_tests(question: Question) -> Iterator[dict[str, object]]:
    """A row for each test; values that are factors are factors here too, while p-values are of their logarithms."""
    tests = question.tests
    corrected, said = corrections([test.value.p_value for test in tests]), verdicts(tests)
    for test, both, verdict in zip(tests, corrected, said, strict=True):
        (value, low, high), (benjamini_hochberg, holm) = test.ends, both or (None, None)
        yield {
            "question": question.title, "data": test.data, "claim": test.claim, "arm": test.arm, "at": test.at,
            "value": value, "low": low, "high": high, "is_limit": test.is_limit, "seeds": test.value.num_values,
            "p": test.value.p_value, "p_benjamini_hochberg": benjamini_hochberg, "p_holm": holm, "verdict": verdict,
        }  # fmt: skip


def question_lines(question: Question) -> Iterator[str]:
    """A heading, how many tests have which verdict, and for each claim a table of arms by widths.

    Where all tests are of the same widths, as those of growth, a single table has a column for each claim.
    """
    yield from (f"## {question.title}", "")
    tests, said = question.tests, verdicts(question.tests)
    if not tests:
        yield from (NOTHING, "")
        return
    counts = ", ".join(f"{said.count(each)} {each}" for each in MARKS)
    limit = " A value with † is a limit: the loss is outside of what the lengths that were run reach."
    note = limit if any(test.is_limit for test in tests) else ""
    yield from (f"{len(tests)} tests: {counts}. A value is {question.value}.{note}", "")
    marked = [(test, test.text + MARKS[verdict]) for test, verdict in zip(tests, said, strict=True)]
    claims = list(dict.fromkeys(test.claim for test in tests))
    if len({test.at for test in tests}) == 1:
        yield _arm_table((test, test.claim, text) for test, text in marked)
        return
    for claim in claims:
        if len(claims) > 1:
            yield from (f"### {claim[0].upper()}{claim[1:]}", "")
        yield _arm_table((test, test.at, text) for test, text in marked if test.claim == claim)


def _arm_table(cells: Iterable[tuple[Test, str, str]]) -> str:
    """A row for each data set and arm, from tests with the column and the text of each."""
    by_arm: dict[tuple[str, str], dict[str, str]] = {}
    for test, column, text in cells:
        by_arm.setdefault((test.data, test.arm), {})[column] = text
    columns = list(dict.fromkeys(column for row in by_arm.values() for column in row))
    ordered = sorted(by_arm, key=lambda one: (DATA.index(one[0]), arm_order(one[1])))
    rows = [(*one, *(by_arm[one].get(column, "–") for column in columns)) for one in ordered]
    return text_table(("data", "arm", *columns), rows)


def arm_order(arm: str) -> list[tuple[int, str]]:
    """A key that sorts arms by words, and by the size of numbers, so that 8 experts stand before 32."""
    return [(int(part), "") if part.isdigit() else (0, part.lower()) for part in re.split(r"(\d+)", arm)]


def law_lines(found: Iterable[FamilyLaw]) -> Iterator[str]:
    """The table of laws, and below it why a law is not identified, or could not be fitted without a width."""
    laws = list(found)
    header = ("data", "family", "law", "error on each width left out", "verdict")
    yield text_table(header, [(each.data, each.family, each.law, each.errors, each.verdict) for each in laws])
    for each in laws:
        if each.reasons:
            said = " ".join(f"{reason[:1].upper()}{reason[1:].rstrip('.')}." for reason in each.reasons)
            yield "- " + markdown_text(f"{each.data}, {each.family}: {said}")
    yield ""


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown with its columns of words aligned left, or a sentence where it would have no rows."""
    cells = [list(row) for row in rows]
    return markdown(header, cells, [name in WORDS for name in header]) if cells else f"{NOTHING}\n"
