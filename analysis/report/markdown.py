"""Render a report as Markdown; the figures are files in `figures/`, beside the page."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.escaping import markdown_block, markdown_code, markdown_text
from analysis.report.document import Block, Bullets, Commands, FigureBlock, Paragraph, Report, Table
from analysis.run_table import markdown

FIGURES = "figures"


def markdown_page(report: Report) -> str:
    """Returns the whole page, with a table of contents."""
    contents = "".join(f"- [{section.title}](#{section.key})\n" for section in report.sections)
    parts = [f"# {markdown_text(report.title)}\n", f"{markdown_text(report.subtitle)}\n", contents]
    for section in report.sections:
        parts.append(f'<a id="{section.key}"></a>\n\n## {markdown_text(section.title)}\n')
        parts += [part for block in section.blocks for part in _block(block)]
    return "\n".join(parts)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Paragraph(text):
            yield f"{markdown_text(text)}\n"
        case Bullets(items, summary):
            if summary:
                yield f"**{markdown_text(summary)}**\n"
            yield "".join(f"- {markdown_text(item)}\n" for item in items)
        case Commands(lines):
            yield markdown_block(list(lines)) + "\n"
        case Table():
            yield from _table(block)
        case FigureBlock(key, title, alt, command=command):
            yield f"### {key}\n"
            yield f"![{markdown_text(alt)}]({FIGURES}/{key}.png)\n"
            numbers = f"Numbers: [{key}.csv]({FIGURES}/{key}.csv)."
            yield f"{markdown_text(title)} {numbers} Drawn by {markdown_code(command)}.\n"


def _table(block: Table) -> Iterator[str]:
    yield f"### {markdown_text(block.caption)}\n"
    header = [column.title for column in block.columns]
    is_words = [column.is_words for column in block.columns]
    yield markdown(header, [[cell.text for cell in row] for row in block.rows], is_words)
    if block.note:
        yield f"{markdown_text(block.note)}\n"
