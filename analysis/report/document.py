"""A report as data: sections of paragraphs, lists, tables, figures and commands, which HTML and Markdown both render.

A cell keeps the number beside its text, so that the page sorts a table by value and not alphabetically.
The content of a report is decided in `content.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from analysis.columns import Column
from analysis.run_table import is_missing

MISSING = "–"


class Cell(NamedTuple):
    """One cell of a table: the text that is shown, and the number it stands for (None where the cell is words)."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text, without markup."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts with the heading `summary`; `are_folded` collapses it on the HTML page."""

    items: Sequence[str]
    summary: str = ""
    are_folded: bool = False


@dataclass(frozen=True)
class Commands:
    """A block of shell commands, one on each line."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table: `caption` says what the rows are, and `note` says below it where the numbers come from.

    `key` is unique in the report and becomes the HTML id of the table.
    """

    key: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class FigureBlock:
    """A drawn figure: `svg` is the picture, `alt` its text alternative, and `csv` the plotted numbers.

    `command` is the shell command that draws the figure again.
    """

    key: str
    title: str
    alt: str
    svg: bytes
    csv: str
    command: str


Block = Paragraph | Bullets | Commands | Table | FigureBlock


@dataclass(frozen=True)
class Section:
    """A section with its heading and blocks; `key` is the anchor that links within the page point to."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A whole report: its title, the line below the title, and its sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]


def table(
    key: str, caption: str, columns: Sequence[Column], rows: Sequence[Mapping[Any, Any]], note: str = ""
) -> Table:
    """Returns the table of `rows`, each a mapping from column key to value, without the columns that have no value."""
    cells = [[cell(row.get(column.key), column) for column in columns] for row in rows]
    kept = [i for i in range(len(columns)) if any(line[i].text != MISSING for line in cells)]
    return Table(key, caption, [columns[i] for i in kept], [[line[i] for i in kept] for line in cells], note)


def cell(value: object, column: Column) -> Cell:
    """Returns the cell of one value, formatted as its column says; a missing value becomes a dash."""
    if column.is_words:
        return Cell(MISSING if value is None or value != value or value == "" else str(value))
    if not isinstance(value, int | float) or is_missing(value):
        return Cell(MISSING)
    return Cell(column.write(value), float(value))
