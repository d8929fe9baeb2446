"""The figures of a report: all that the registry can draw from the runs, and why the others cannot be drawn.

Each picture is embedded as an image of its own (a data URI) and not as inline SVG, so that the ids inside one SVG
cannot clash with those of another.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.figures.registry import FIGURES
from analysis.load_records import MissingDataError, Records
from analysis.parameter_counts import ACTIVATED, COUNTS, Count
from analysis.report.document import FigureBlock
from analysis.style import Drawing, write_drawing
from experiments.errors import RecordError


@dataclass(frozen=True)
class Pictures:
    """The files that were written, the figures they hold, and a (name, reason) for each figure not drawn."""

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
    smoothed: bool = False,
) -> Pictures:
    """Draws every figure of the registry, in its order, and writes the files into `folder`.

    `roots` are the folders on the command line that would load `records` again; `tell` is called with the name of
    each figure before it is drawn. Raises `StorageError` when a file cannot be written.
    """
    pictures = Pictures([], [], [])
    options = _options(paper_values, parameters, smoothed)
    for entry in FIGURES.values():
        tell(f"figure {entry.name}")
        try:
            drawing = entry.drawing(records, table, paper_values, parameters, smoothed)
        except (MissingDataError, RecordError) as error:  # RecordError: conditions differ
            pictures.not_drawn.append((entry.name, str(error)))
            continue
        png, svg, csv = write_drawing(drawing, folder, entry.name)
        alt = alt_text(entry.description, drawing)
        pictures.paths.extend((png, svg, csv))
        command = shlex.join(["ecdit", "plot", entry.name, *roots, *options])
        block = FigureBlock(entry.name, entry.description, alt, svg.read_bytes(), csv.read_text(), command)
        pictures.blocks.append(block)
    return pictures


def _options(paper_values: bool, parameters: Count, smoothed: bool) -> list[str]:
    """Returns the command-line options of `ecdit plot` that give the same figures; defaults are left out."""
    names = [name for name, count in COUNTS.items() if count == parameters and count != ACTIVATED]
    flags = [*(["--paper-values"] if paper_values else []), *(["--smoothed"] if smoothed else [])]
    return [*flags, *(["--parameters", *names] if names else [])]


def alt_text(description: str, drawing: Drawing) -> str:
    """Returns the text alternative of a figure: its description, and the arms it shows where its numbers name them."""
    if "arm" not in drawing.numbers:
        return description
    arms = ", ".join(str(arm) for arm in drawing.numbers["arm"].dropna().unique())
    return f"{description} Arms: {arms}." if arms else description
