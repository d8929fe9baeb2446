"""The figures of a report: all that the registry can draw from the runs, and why not the others.

A picture goes into the page as an image of its own (a data URI), so that the names inside one SVG cannot clash with
those of another.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.figures.registry import FIGURES
from analysis.load import MissingDataError, Records
from analysis.parameters import ACTIVATED, COUNTS, Count
from analysis.report.document import FigureBlock
from analysis.style import Drawing, write_drawing
from experiments.errors import RecordError


@dataclass(frozen=True)
class Pictures:
    """The files that were written, the figures in them, and (name, reason) of what could not be drawn."""

    paths: list[Path]
    blocks: list[FigureBlock]
    not_drawn: list[tuple[str, str]]


def draw_all(
    records: Records,
    table: pd.DataFrame,
    folder: Path,
    roots: Sequence[str],
    paper_values: bool = False,
    parameters: Count = ACTIVATED,
    tell: Callable[[str], None] = lambda _: None,
) -> Pictures:
    """Every figure of the registry, in its order, written into `folder`. Raises `StorageError`.

    `roots` is what to type to load `records` again; `tell` hears which figure is next.
    """
    pictures = Pictures([], [], [])
    options = _options(paper_values, parameters)
    for entry in FIGURES:
        tell(f"figure {entry.name} ...")
        try:
            drawing = entry.drawing(records, table, paper_values, parameters)
        except (MissingDataError, RecordError) as error:  # or measured under other conditions
            pictures.not_drawn.append((entry.name, str(error)))
            continue
        png, svg, csv = write_drawing(drawing, folder, entry.name)
        alt = alt_text(entry.description, drawing)
        pictures.paths.extend((png, svg, csv))
        command = shlex.join(["ecdit", "plot", entry.name, *roots, *options])
        block = FigureBlock(entry.name, entry.description, alt, svg.read_bytes(), csv.read_text(), command)
        pictures.blocks.append(block)
    return pictures


def _options(paper_values: bool, parameters: Count) -> list[str]:
    """As they are typed."""
    names = [name for name, count in COUNTS.items() if count == parameters and count != ACTIVATED]
    return [*(["--paper-values"] if paper_values else []), *(["--parameters", *names] if names else [])]


def alt_text(description: str, drawing: Drawing) -> str:
    """What the figure shows, and of which arms."""
    if "arm" not in drawing.numbers:
        return description
    arms = ", ".join(str(arm) for arm in drawing.numbers["arm"].dropna().unique())
    return f"{description} Arms: {arms}." if arms else description
