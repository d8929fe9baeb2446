"""Render a report as one HTML page that loads nothing: styles, the script and the figures are embedded.

Tables are complete without the script, which only sorts them. Every figure has an accessible name, every table a
caption and every section a link. `page.css` and `page.js` lie beside this file.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files

from analysis.escaping import html_text
from analysis.report.document import Block, Bullets, Cell, Commands, FigureBlock, Paragraph, Report, Section, Table

LARGEST_CSV_BYTES = 1 << 19
"""A larger CSV of a figure is not embedded in the page, which then names the file in `figures/` instead."""

SHORT = 40
"""Cells of words with at most this many characters get the CSS class `short`, which keeps them on one line."""


def html_page(report: Report) -> str:
    """Returns the whole HTML page."""
    style, script = (files("analysis.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    links = "".join(f'<li><a href="#{section.key}">{html_text(section.title)}</a></li>' for section in report.sections)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{html_text(report.title)}</title>\n<style>{style}</style>\n</head>\n<body>",
        '<a class="skip" href="#content">Skip to the content</a>',
        f"<header><h1>{html_text(report.title)}</h1><p>{html_text(report.subtitle)}</p></header>",
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main id="content">',
        *(part for section in report.sections for part in _section(section)),
        f"</main>\n<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _policy(style: str, script: str) -> str:
    """Returns the Content-Security-Policy: the page's own style, its own script and embedded pictures, nothing else.

    It is a second defence beside escaping: script that a text of a record smuggled into the page would not run.
    """
    hashes = [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in (style, script)]
    rules = ("default-src 'none'", "img-src data:", f"style-src {hashes[0]}", f"script-src {hashes[1]}")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _section(section: Section) -> Iterator[str]:
    yield f'<section id="{section.key}" aria-labelledby="{section.key}-title">'
    yield f'<h2 id="{section.key}-title">{html_text(section.title)}</h2>'
    for block in section.blocks:
        yield from _block(block)
    yield "</section>"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Paragraph(text):
            yield f"<p>{html_text(text)}</p>"
        case Bullets():
            yield from _bullets(block)
        case Commands(lines):
            yield f"<pre><code>{chr(10).join(map(html_text, lines))}</code></pre>"
        case Table():
            yield from _table(block)
        case FigureBlock():
            yield from _figure(block)


def _bullets(block: Bullets) -> Iterator[str]:
    items = "".join(f"<li>{html_text(item)}</li>" for item in block.items)
    if block.are_folded:
        yield f"<details><summary>{html_text(block.summary)}</summary><ul>{items}</ul></details>"
        return
    if block.summary:
        yield f"<h3>{html_text(block.summary)}</h3>"
    yield f"<ul>{items}</ul>"


def _table(block: Table) -> Iterator[str]:
    name = html_text(block.caption)
    yield f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table id="{block.key}">'
    yield f"<caption>{name}</caption><thead><tr>"
    for column in block.columns:
        kind = ' class="words"' if column.is_words else ""
        yield f'<th scope="col"{kind}><button type="button">{html_text(column.title)}</button></th>'
    yield "</tr></thead><tbody>"
    is_words = [column.is_words for column in block.columns]
    for row in block.rows:
        yield "<tr>" + "".join(_cell(cell, words) for cell, words in zip(row, is_words, strict=True)) + "</tr>"
    yield "</tbody></table></div>"
    if block.note:
        yield f'<p class="note">{html_text(block.note)}</p>'


def _cell(cell: Cell, is_words: bool) -> str:
    if is_words:
        kind = "words short" if len(cell.text) <= SHORT else "words"
        return f'<td class="{kind}">{html_text(cell.text)}</td>'
    value = "" if cell.number is None else f' data-value="{cell.number!r}"'
    return f"<td{value}>{html_text(cell.text)}</td>"


def _figure(block: FigureBlock) -> Iterator[str]:
    picture = b64encode(block.svg).decode()
    yield f'<figure id="figure-{block.key}"><h3>{html_text(block.key)}</h3>'
    yield f'<div class="picture"><img alt="{html_text(block.alt)}" src="data:image/svg+xml;base64,{picture}"></div>'
    yield f"<figcaption>{html_text(block.title)} {_numbers(block)}<br>"
    yield f"Drawn by <code>{html_text(block.command)}</code></figcaption></figure>"


def _numbers(block: FigureBlock) -> str:
    name, data = f"{block.key}.csv", block.csv.encode()
    if len(data) > LARGEST_CSV_BYTES:
        return f"Its numbers are in figures/{name}, beside this page."
    return f'<a download="{name}" href="data:text/csv;base64,{b64encode(data).decode()}">Its numbers (CSV)</a>'
