"""How the commands speak: data to stdout, talk to stderr.

A person at a terminal sees rich tables; a pipe gets the same cells as aligned plain text; `--json` gets JSON with the
raw values. A missing value is a missing key, or an empty cell: never 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table: the key of the rows, the title, and how a value is written.

    `whole`: its cells are measurements; they stand to the right and are never broken or cut, however narrow the screen.
    """

    key: str
    title: str
    write: Callable[[Any], str] = str
    whole: bool = False

    def cell(self, row: Row) -> str:
        """The text of this column in `row`; empty where the value is missing."""
        value = row.get(self.key)
        return "" if value is None else self.write(value)


def talk() -> Console:
    """Where progress, hints and errors go."""
    from rich.console import Console

    return Console(stderr=True)


def data() -> Console:
    """Where results go."""
    from rich.console import Console

    return Console()


def say(line: str) -> None:
    """One line to stderr, as it is: not wrapped, no markup."""
    talk().print(line, soft_wrap=True, highlight=False, markup=False)


def print_error(message: str) -> None:
    """One line on stderr, whatever the width of the terminal."""
    from rich.text import Text

    line = Text.assemble(("error:", "bold red"), " ", " ".join(message.split()))
    talk().print(line, soft_wrap=True)


def print_rows(rows: Sequence[Row], columns: Sequence[Column], as_json: bool, title: str = "") -> None:
    """`rows` as a table of `columns`, or as a JSON list with every key that the rows have."""
    if as_json:
        print_json([{key: value for key, value in row.items() if value is not None} for row in rows])
    elif data().is_terminal:
        _print_rich(rows, columns, title)
    else:
        _print_plain(rows, columns)


def print_json(value: Any) -> None:
    """`value` as indented JSON. NaN and infinity are refused: they are not JSON, and not data."""
    print(json.dumps(value, indent=2, allow_nan=False))


def count(value: float) -> str:
    """`1.62B`: three digits with K, M, B or T."""
    return _scaled(value, ("", "K", "M", "B", "T"), "")


def flops(value: float) -> str:
    """`44.2 MFLOP`: three digits with k, M, G, T, P or E."""
    return _scaled(value, ("", "k", "M", "G", "T", "P", "E"), " ") + "FLOP"


def duration(seconds: float) -> str:
    """`42 s`, `4 min 10 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _scaled(value: float, prefixes: Sequence[str], space: str) -> str:
    index = 0
    while abs(value) >= 999.5 and index < len(prefixes) - 1:
        value, index = value / 1000, index + 1
    digits = f"{value:#.3g}".rstrip(".") if index and abs(value) < 999.5 else f"{value:.4g}"
    return f"{digits}{space}{prefixes[index]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_right(rows: Sequence[Row], column: Column) -> bool:
    """Numbers stand to the right."""
    return column.whole or any(_is_number(row.get(column.key)) for row in rows)


def _print_rich(rows: Sequence[Row], columns: Sequence[Column], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if _is_right(rows, column) else "left"
        table.add_column(column.title, justify=justify, no_wrap=column.whole, overflow="fold")
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    data().print(table)


def _print_plain(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    texts = [[column.title for column in columns], *([column.cell(row) for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*texts, strict=True)]
    right = [_is_right(rows, column) for column in columns]
    for line in texts:
        cells = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        )
        print("  ".join(cells).rstrip())
