"""Reads the pages a user reads: their fenced blocks, their links and their headings.

A block of commands may be marked by a comment above it, which says how it is tested and why not by running it:

    <!-- test: parse, because it needs the network -->

Without a mark its commands are run. `dry-run` leaves out the launcher before `ecdit` and runs the rest; `parse` hands
the words to the real command line and its settings to the real checks, and runs nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
MODES = ("run", "dry-run", "parse")
SHELLS = ("bash", "sh", "console")

FENCE = re.compile(
    r"(?:^<!-- test: (?P<mode>[\w-]+), because (?P<reason>[^\n]+) -->\n)?"
    r"^(?P<fence>```+)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=fence)\s*?$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: the language and the title of its first line, its text, and how it is tested."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    mode: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command; a line that ends in a backslash goes on, and comments are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        typed = (line.removeprefix("$ ") for line in lines if self.language != "console" or line.startswith("$ "))
        return [words for line in typed if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', found["info"])
        yield Block(
            page=page,
            line=text.count("\n", 0, found.start("fence")) + 1,
            language=found["info"].split(" ")[0],
            title=title[1] if title else "",
            text=found["text"],
            mode=found["mode"] or "run",
        )


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMAND_BLOCKS = [block for block in ALL_BLOCKS if block.language in SHELLS]


def prose(page: Path) -> str:
    """A page without its fenced blocks and code."""
    return re.sub(r"`[^`]*`", "", FENCE.sub("", page.read_text()))


def links(page: Path) -> list[str]:
    """The targets of all links and pictures of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))
