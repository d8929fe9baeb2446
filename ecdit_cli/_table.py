"""Tables for a terminal in which every row is one line, whatever the width.

Text columns are shortened in the middle, because names of runs begin with the model and end with the settings that
differ. Where too little would be left of them, the least important columns are left out instead and named below the
table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from analysis.columns import Column, Row
from ecdit_cli._console import say
from experiments.text import printable, shortened

if TYPE_CHECKING:
    from rich.console import Console

BETWEEN = 3
"""The number of characters between two columns."""
AROUND = 2
"""The number of characters beside the first and the last column together."""
SHORTEST, LONGEST_LEAST = 12, 40
"""A name keeps at least 12 characters at the narrowest terminals, and at least 40 at wide ones."""


def print_table(console: Console, rows: Sequence[Row], columns: Sequence[Column], title: str) -> None:
    """Prints `rows` as lines that are no wider than the terminal."""
    shown, widths = _fitted(rows, columns, console.width)
    table = Table(title=Text(printable(title)) if title else None, title_justify="left", box=SIMPLE_HEAD)
    table.pad_edge = False
    for column, width in zip(shown, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.is_number(rows) else "left"
        header = Text(within(printable(column.title), width))
        table.add_column(header, justify=justify, no_wrap=not column.prose, overflow="fold", width=width)
    for row in rows:
        cells = (_cell(column, row, width) for column, width in zip(shown, widths, strict=True))
        table.add_row(*cells)
    console.print(table)
    left_away = [column.title for column in columns if column not in shown]
    if left_away:
        say(f"Left away at this width: {', '.join(left_away)}. A wider terminal, a pipe and --json have them.")


def within(text: str, width: int) -> str:
    """Returns `text` without its middle, in at most `width` terminal cells; some characters take two cells."""
    length = width
    while cell_len(short := shortened(text, length)) > width:
        length -= 1
    return short


def _cell(column: Column, row: Row, width: int) -> Text:
    text = column.cell(row)
    return Text(text if column.prose else within(text, width))


def _fitted(rows: Sequence[Row], columns: Sequence[Column], width: int) -> tuple[list[Column], list[int]]:
    """Returns the columns that fit, and their widths."""
    shown = list(columns)
    full = {id(column): _full_width(rows, column) for column in columns}
    are_numbers = {id(column): column.is_number(rows) for column in columns}
    least = max(SHORTEST, min(LONGEST_LEAST, width // 4))
    while True:
        widths = [full[id(column)] for column in shown]
        lowest = [
            each if are_numbers[id(column)] else min(each, least) for column, each in zip(shown, widths, strict=True)
        ]
        room = width - AROUND - BETWEEN * (len(shown) - 1)
        if sum(lowest) <= room or len(shown) == 1:
            return shown, _shrunk(widths, lowest, room)
        last = max(range(len(shown)), key=lambda place: (shown[place].priority, place))
        del shown[last]


def _full_width(rows: Sequence[Row], column: Column) -> int:
    return max(cell_len(text) for text in (printable(column.title), *(column.cell(row) for row in rows)))


def _shrunk(widths: list[int], lowest: list[int], room: int) -> list[int]:
    """Returns `widths` that sum to at most `room`, made by narrowing the widest column again and again.

    No column becomes narrower than its entry in `lowest`, unless it is the only one left.
    """
    widths = list(widths)
    while sum(widths) > room:
        able = [place for place in range(len(widths)) if widths[place] > lowest[place]]
        if not able:
            return [max(1, room)]
        widest = max(able, key=lambda place: widths[place])
        widths[widest] -= 1
    return widths
