"""A report as data: sections of paragraphs, lists, tables, figures and commands, which HTML and Markdown both render.

A cell keeps the number beside its text, so that a table is sorted by values and not by what they look like.
What a report says is decided in `content.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from analysis.tables import is_missing

MISSING = "–"


class Cell(NamedTuple):
    """What is shown, and the number it stands for where it is one."""

    text: str
    number: float | None = None


class Column(NamedTuple):
    """A column of a table: the key of the rows, the title, how a number is written (None: the cells are words)."""

    key: str
    title: str
    write: Callable[[float], str] | None = None


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts; `are_folded` hides a long one until it is asked for, under `summary`."""

    items: Sequence[str]
    summary: str = ""
    are_folded: bool = False


@dataclass(frozen=True)
class Commands:
    """Lines to type."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """`key` is unique in the report; `caption` says what the rows are; `note` where the numbers are from."""

    key: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class FigureBlock:
    """A drawn figure: `alt` names it for those who do not see it, `svg` is the picture, `csv` its numbers.

    `command` draws it again.
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
    """`key` is what links within the page point to."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A page: its title, one line under it, and its sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]


def table(
    key: str, caption: str, columns: Sequence[Column], rows: Sequence[Mapping[Any, Any]], note: str = ""
) -> Table:
    """A table of `rows` (a mapping from key to value each); columns in which nothing was measured are left away."""
    cells = [[cell(row.get(column.key), column) for column in columns] for row in rows]
    kept = [i for i in range(len(columns)) if any(line[i].text != MISSING for line in cells)]
    return Table(key, caption, [columns[i] for i in kept], [[line[i] for i in kept] for line in cells], note)


def cell(value: object, column: Column) -> Cell:
    """One value in its column; a dash where it is missing."""
    if column.write is None:
        return Cell(MISSING if value is None or value != value or value == "" else str(value))
    if not isinstance(value, int | float) or is_missing(value):
        return Cell(MISSING)
    return Cell(column.write(value), float(value))
