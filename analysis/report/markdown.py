"""A report as Markdown; figures are files beside the page, in `figures/`."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.report.document import Block, Bullets, Commands, FigureBlock, Paragraph, Report, Table
from analysis.tables import markdown

FIGURES = "figures"
ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_<>[]#"})


def markdown_page(report: Report) -> str:
    """The whole page, with a table of contents."""
    contents = "".join(f"- [{section.title}](#{section.key})\n" for section in report.sections)
    parts = [f"# {escaped(report.title)}\n", f"{escaped(report.subtitle)}\n", contents]
    for section in report.sections:
        parts.append(f'<a id="{section.key}"></a>\n\n## {escaped(section.title)}\n')
        parts += [part for block in section.blocks for part in _block(block)]
    return "\n".join(parts)


def escaped(text: str) -> str:
    """`text` on one line, without its characters meaning anything."""
    return " ".join(text.translate(ESCAPED).split())


def _block(block: Block) -> Iterator[str]:
    match block:
        case Paragraph(text):
            yield f"{escaped(text)}\n"
        case Bullets(items, summary):
            if summary:
                yield f"**{escaped(summary)}**\n"
            yield "".join(f"- {escaped(item)}\n" for item in items)
        case Commands(lines):
            yield "\n".join(["```bash", *lines, "```"]) + "\n"
        case Table():
            yield from _table(block)
        case FigureBlock(key, title, alt, command=command):
            yield f"### {key}\n"
            yield f"![{escaped(alt)}]({FIGURES}/{key}.png)\n"
            yield f"{escaped(title)} Numbers: [{key}.csv]({FIGURES}/{key}.csv). Drawn by `{command}`.\n"


def _table(block: Table) -> Iterator[str]:
    yield f"### {escaped(block.caption)}\n"
    header = [escaped(column.title) for column in block.columns]
    is_words = [column.write is None for column in block.columns]
    yield markdown(header, [[escaped(cell.text) for cell in row] for row in block.rows], is_words)
    if block.note:
        yield f"{escaped(block.note)}\n"
