"""Text of records on its way out of here, with one function for each destination.

Names of runs, reasons of failures, settings and metrics are data: nothing in them is a formula, a tag, a link, a
command of a terminal or a sum of a spreadsheet. What is not printable is written as an escape everywhere
(`experiments/text.py`); here is what else a destination gives a meaning to.
"""

from __future__ import annotations

import html
import re
from typing import Any

import pandas as pd

from experiments.text import printable

MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_<>[]#|~&$"})
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def html_text(text: str) -> str:
    """`text` for HTML, inside of an element or of a quoted attribute."""
    return html.escape(printable(text))


def markdown_text(text: str) -> str:
    """`text` for Markdown on one line, in a paragraph, a list or a cell of a table."""
    return printable(" ".join(text.split())).translate(MARKDOWN)


def markdown_code(text: str) -> str:
    """`text` as code within a line of Markdown, with more backticks around it than are in it."""
    code = printable(text)
    fence = "`" * (_longest_run_of_backticks(code) + 1)
    space = " " if code.startswith("`") or code.endswith("`") else ""
    return f"{fence}{space}{code}{space}{fence}"


def markdown_block(lines: list[str]) -> str:
    """Commands as a block of code in Markdown."""
    code = [printable(line) for line in lines]
    fence = "`" * max(3, 1 + max(map(_longest_run_of_backticks, code), default=0))
    return "\n".join([f"{fence}bash", *code, fence])


def for_csv(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with texts that no spreadsheet takes for a formula: `'` stands before them. Numbers stay numbers."""
    texts = {
        name: table[name].map(_csv_cell)
        for name in table
        if not (pd.api.types.is_numeric_dtype(table[name]) or pd.api.types.is_bool_dtype(table[name]))
    }
    return table.assign(**{str(name): values for name, values in texts.items()}).rename(
        columns={name: _csv_cell(name) for name in table.columns}
    )


def figure_text(text: str) -> str:
    """`text` for a label of a figure, where `$` would begin a formula."""
    return printable(text).replace("$", r"\$")


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(FORMULA_STARTS) and not NUMBER.fullmatch(value)
    return ("'" if is_formula else "") + printable(value)


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
