"""Output of the commands: data goes to stdout, progress, hints and errors to stderr.

At a terminal tables are drawn by rich, and every row is one line: where the terminal is narrow names are shortened in
the middle, and then the least important columns are left out (`_table.py`). A pipe gets all cells as aligned plain
text; `--json` gets JSON with the raw values. A missing value is a missing key or an empty cell, never 0.

Names, reasons and paths are data: characters in them that are not printable are escaped, and nothing is read as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from analysis.columns import Column, Row
from experiments.text import printable

if TYPE_CHECKING:
    from rich.console import Console


def talk() -> Console:
    """Returns the console for progress, hints and errors."""
    from rich.console import Console

    return Console(stderr=True)


def data() -> Console:
    """Returns the console for results."""
    from rich.console import Console

    return Console()


def say(line: str, console: Console | None = None) -> None:
    """Prints one line to stderr without wrapping and markup; characters that are not printable are escaped.

    A `console` that shows a live view prints the line above it.
    """
    (console or talk()).print(printable(line), soft_wrap=True, highlight=False, markup=False)


def print_paths(paths: Iterable[object]) -> None:
    """Prints the paths of written files to stdout, one on each line."""
    for path in paths:
        print(printable(str(path)))


def print_error(message: str) -> None:
    """Prints an error as one line on stderr, whatever the width of the terminal."""
    from rich.text import Text

    line = Text.assemble(("error:", "bold red"), " ", printable(" ".join(message.split())))
    talk().print(line, soft_wrap=True)


def print_rows(rows: Sequence[Row], columns: Sequence[Column], as_json: bool, title: str = "") -> None:
    """Prints `rows` as a table of `columns`, or as a JSON list with every key that the rows have."""
    if as_json:
        print_json([{key: value for key, value in row.items() if value is not None} for row in rows])
    elif data().is_terminal:
        from ecdit_cli._table import print_table

        print_table(data(), rows, columns, title)
    else:
        _print_plain(rows, columns)


def print_json(value: Any) -> None:
    """Prints `value` as indented JSON. Raises `ValueError` for NaN and infinity, which JSON does not have."""
    print(json.dumps(value, indent=2, allow_nan=False))


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
