"""Renews every number, table and figure of the pages that follows from the committed tables of runs.

    make study-tables            # or: python docs/study/renew.py

A page holds numbers between `<!--value:NAME-->` and `<!--end-->`, and tables between `<!--table:NAME-->` and
`<!--end-->`, each on a line of its own. This program writes what stands between them; tests compare it with the pages,
so that no page can differ from its runs. A line must not begin with a number's mark, because Markdown takes such a line
for a block of HTML. `python docs/study/demo_numbers.py out/demo` first takes the tables of a new `make demo`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import block_numbers
import demo_numbers
import recipe_numbers
import router_numbers
import second_study_numbers
import study_numbers
import upcycling_numbers
from second_study_page import write_page
from study_files import write_files

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PAGES = (
    ROOT / "README.md", ROOT / "docs" / "getting-started.md", ROOT / "docs" / "sampling.md", FOLDER / "README.md",
    FOLDER / "routers.md", FOLDER / "blocks-and-objectives.md", FOLDER / "upcycling.md",
)  # fmt: skip
SOURCES = (
    demo_numbers, recipe_numbers, study_numbers, router_numbers, block_numbers, upcycling_numbers, second_study_numbers,
)  # fmt: skip
MARKED = re.compile(r"(<!--(value|table):([\w.-]+)-->)(.*?)(<!--end-->)", re.DOTALL)
BEGINS_A_LINE = re.compile(r"^[\s>*-]*<!--value:", re.MULTILINE)


def all_values() -> dict[str, str]:
    """Returns the text of every number by its name."""
    return {name: text for source in SOURCES for name, text in source.values()}


def all_tables() -> dict[str, Callable[[], Iterator[str]]]:
    """Returns what makes the lines of every table, by its name."""
    return {name: lines for source in SOURCES for name, lines in source.TABLES.items()}


def renewed(page: str, values: Mapping[str, str]) -> str:
    """Returns a page with the numbers and tables of today. Raises `KeyError` for a name that is not made here."""
    tables = all_tables()

    def fill(found: re.Match[str]) -> str:
        mark, kind, name, _, end = found.groups()
        return mark + (values[name] if kind == "value" else "\n" + "\n".join(tables[name]()) + "\n") + end

    return MARKED.sub(fill, page)


def main() -> None:
    """Writes the files that numbers are read from, the second study's results, and then the numbers of all pages."""
    write_files()
    write_page(FOLDER)
    values = all_values()
    for path in PAGES:
        path.write_text(renewed(path.read_text(), values))


if __name__ == "__main__":
    main()
