"""The column of a table: which value of a row it shows, under which title, and how the value is written.

Tables at a terminal, in a report, in an export and in Markdown are all made of such columns, so that a value is
written the same way everywhere. This module imports neither pandas nor rich: commands name their columns at import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.text import printable

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table: the key in the rows, the title, and the function that formats a value.

    The other fields only matter at a terminal. `whole` columns hold measurements, which are right-aligned and never
    broken or cut, however narrow the terminal is. `prose` columns hold sentences, which may take several lines. Where
    the columns do not fit, those of the largest `priority` are left out first, and of equal ones the last.
    """

    key: str
    title: str
    write: Callable[[Any], str] = str
    whole: bool = False
    prose: bool = False
    priority: int = 0

    @property
    def is_words(self) -> bool:
        """Returns whether the values are shown as they are, because they have no format for numbers."""
        return self.write is str

    def cell(self, row: Row) -> str:
        """Returns the text of this column in `row`, empty where the value is missing."""
        value = row.get(self.key)
        return "" if value is None else printable(self.write(value))

    def is_number(self, rows: Sequence[Row]) -> bool:
        """Returns whether the cells are right-aligned and never cut."""
        return self.whole or any(_is_number(row.get(self.key)) for row in rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
