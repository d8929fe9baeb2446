"""Functions that escape text of records, one for each format that it is written in.

Names of runs, reasons of failures, settings and metrics are data and come from anybody. None of them may act as a
formula, a tag, a link, a terminal command or a spreadsheet formula in what this program writes. Unprintable
characters are written as escapes everywhere (`experiments/text.py`). The functions here also escape the characters that
have a meaning in their format.
"""

from __future__ import annotations

import html
import re
from typing import Any

import pandas as pd

from experiments.text import printable

MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_<>[]#|~&$"})
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins with one of these for a formula."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def html_text(text: str) -> str:
    """Escapes `text` for HTML, inside of an element or of a quoted attribute."""
    return html.escape(printable(text))


def markdown_text(text: str) -> str:
    """Escapes `text` for one line of Markdown, in a paragraph, a list or a table's cell."""
    return printable(" ".join(text.split())).translate(MARKDOWN)


def markdown_code(text: str) -> str:
    """Writes `text` as code within a line of Markdown, between more backticks than stand in a row within it."""
    code = printable(text)
    fence = "`" * (_longest_run_of_backticks(code) + 1)
    space = " " if code.startswith("`") or code.endswith("`") else ""
    return f"{fence}{space}{code}{space}{fence}"


def markdown_block(lines: list[str]) -> str:
    """Writes commands as a block of code in Markdown."""
    code = [printable(line) for line in lines]
    fence = "`" * max(3, 1 + max(map(_longest_run_of_backticks, code), default=0))
    return "\n".join([f"{fence}bash", *code, fence])


def for_csv(table: pd.DataFrame) -> pd.DataFrame:
    """Puts `'` before every text of `table` that a spreadsheet would take for a formula. Numbers stay numbers."""
    texts = {
        name: table[name].map(_csv_cell)
        for name in table
        if not (pd.api.types.is_numeric_dtype(table[name]) or pd.api.types.is_bool_dtype(table[name]))
    }
    return table.assign(**{str(name): values for name, values in texts.items()}).rename(
        columns={name: _csv_cell(name) for name in table.columns}
    )


def figure_text(text: str) -> str:
    """Escapes `text` for a label of a matplotlib figure, where `$` would begin a formula."""
    return printable(text).replace("$", r"\$")


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(FORMULA_STARTS) and not NUMBER.fullmatch(value)
    return ("'" if is_formula else "") + printable(value)


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
