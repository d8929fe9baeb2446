"""How the commands speak: data to stdout, talk to stderr.

A person at a terminal sees rich tables of which every row is one line: at a narrow terminal names are shortened from
the middle, and then the columns that matter least are left away (`_table.py`). A pipe gets all cells as aligned plain
text; `--json` gets JSON with the raw values. A missing value is a missing key, or an empty cell: never 0.

Names, reasons and paths are data: what is not printable in them is written as an escape, and nothing is markup.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.text import printable

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table: the key of the rows, the title, and how a value is written.

    `whole`: its cells are measurements; they stand to the right and are never broken or cut, however narrow the screen.
    `prose`: its cells are sentences; they may take several lines. `priority`: of the columns that do not fit a terminal
    those of the largest number go first, and of equal ones the last.
    """

    key: str
    title: str
    write: Callable[[Any], str] = str
    whole: bool = False
    prose: bool = False
    priority: int = 0

    def cell(self, row: Row) -> str:
        """The text of this column in `row`; empty where the value is missing."""
        value = row.get(self.key)
        return "" if value is None else printable(self.write(value))

    def is_number(self, rows: Sequence[Row]) -> bool:
        """Whether its cells stand to the right and are never cut."""
        return self.whole or any(_is_number(row.get(self.key)) for row in rows)


def talk() -> Console:
    """Where progress, hints and errors go."""
    from rich.console import Console

    return Console(stderr=True)


def data() -> Console:
    """Where results go."""
    from rich.console import Console

    return Console()


def say(line: str) -> None:
    """One line to stderr: not wrapped, no markup, and what is not printable escaped."""
    talk().print(printable(line), soft_wrap=True, highlight=False, markup=False)


def print_paths(paths: Iterable[object]) -> None:
    """The files that were written, one a line, to stdout."""
    for path in paths:
        print(printable(str(path)))


def print_error(message: str) -> None:
    """One line on stderr, whatever the width of the terminal."""
    from rich.text import Text

    line = Text.assemble(("error:", "bold red"), " ", printable(" ".join(message.split())))
    talk().print(line, soft_wrap=True)


def print_rows(rows: Sequence[Row], columns: Sequence[Column], as_json: bool, title: str = "") -> None:
    """`rows` as a table of `columns`, or as a JSON list with every key that the rows have."""
    if as_json:
        print_json([{key: value for key, value in row.items() if value is not None} for row in rows])
    elif data().is_terminal:
        from ecdit_cli._table import print_table

        print_table(data(), rows, columns, title)
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


def _print_plain(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    texts = [
        [printable(column.title) for column in columns],
        *([column.cell(row) for column in columns] for row in rows),
    ]
    widths = [max(map(len, cells)) for cells in zip(*texts, strict=True)]
    right = [column.is_number(rows) for column in columns]
    for line in texts:
        cells = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        )
        print("  ".join(cells).rstrip())
