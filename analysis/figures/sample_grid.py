"""Draws generated images in a grid with their captions, which `ecdit sample` writes.

The images of one caption stand beside each other, each with its own note below, and the caption stands below all of
them. Texts are wrapped by their measured width and rows are as high as their longest text, so nothing overlaps. Each
pixel of an image is a whole number of dots, so pixels stay sharp. `write_png` in `analysis/style.py` writes the figure.

Legend: B images, H rows, W columns, C colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.style import DOTS_PER_INCH, GREY, paper_style, place_text, wrapped

COLUMNS = 6
MOST_IMAGES = 1000
"""The images of the largest grid that `ecdit sample` draws. A grid of all that it can sample would take 20 GB."""
SIDE = 0.96
"""The side of an image in inches, which gives each of 32 pixels 6 dots at `DOTS_PER_INCH`."""
GAP = 0.06
GROUP_GAP = 0.18
MARGIN = 0.1
NOTE_LINE = 0.112
CAPTION_LINE = 0.125
BETWEEN_ROWS = 0.14
TEXT_POINTS = 7.0
NOTE_POINTS = 6.5
MARKS = {"right": "✓", "wrong": "✗"}
"""Marks that are put before notes which begin with these words, so that a verdict does not depend on colour."""


class _GridGroup(NamedTuple):
    """The images of one caption, by number and in rows, and the lines of text below them."""

    rows: list[list[int]]
    notes: dict[int, list[str]]
    caption: list[str]

    @property
    def note_lines(self) -> list[int]:
        """Returns the number of lines of the longest note in each row."""
        return [max(len(self.notes.get(image, [])) for image in row) for row in self.rows]

    @property
    def height(self) -> float:
        """Returns the height in inches, without the space to the next group."""
        return sum(SIDE + GAP + NOTE_LINE * lines for lines in self.note_lines) + CAPTION_LINE * len(self.caption)


def num_captions_shown(num_captions: int, per_caption: int) -> int:
    """Returns how many of the captions, the first ones, have their images in a grid of at most `MOST_IMAGES`."""
    return min(num_captions, max(1, MOST_IMAGES // per_caption))


def draw_sample_grid(
    images_BHWC: NDArray[np.uint8], captions: Sequence[str], notes: Sequence[str] | None = None, per_caption: int = 1
) -> Figure:
    """Draws a grid of `per_caption` images for each of `captions`; the images of one caption follow each other.

    `notes` has a text for each image. A note that begins with `right` or `wrong` gets a tick or a cross.
    """
    assert len(images_BHWC) == per_caption * len(captions)
    assert notes is None or len(notes) == len(images_BHWC)
    columns = min(COLUMNS, per_caption)
    width = columns * SIDE + (columns - 1) * GAP
    groups = [_group(i * per_caption, per_caption, caption, notes, width) for i, caption in enumerate(captions)]
    in_a_row = min(len(groups), max(1, COLUMNS // columns))
    lines = [groups[i : i + in_a_row] for i in range(0, len(groups), in_a_row)]
    heights = [max(group.height for group in line) + BETWEEN_ROWS for line in lines]
    size = (2 * MARGIN + in_a_row * (width + GROUP_GAP) - GROUP_GAP, 2 * MARGIN + sum(heights) - BETWEEN_ROWS)
    with paper_style():
        figure = Figure(figsize=size, dpi=_dots_per_inch(images_BHWC.shape[1]))
        top = MARGIN
        for line, height in zip(lines, heights, strict=True):
            for column, group in enumerate(line):
                _draw_group(figure, group, images_BHWC, MARGIN + column * (width + GROUP_GAP), top)
            top += height
    return figure


def _group(first: int, per_caption: int, caption: str, notes: Sequence[str] | None, width: float) -> _GridGroup:
    images = list(range(first, first + per_caption))
    rows = [images[i : i + COLUMNS] for i in range(0, per_caption, COLUMNS)]
    of_images = {i: wrapped(_marked(notes[i]), SIDE, NOTE_POINTS) for i in images} if notes else {}
    return _GridGroup(rows, of_images, wrapped(caption, width, TEXT_POINTS))


def _marked(note: str) -> str:
    mark = next((mark for word, mark in MARKS.items() if note.startswith(word)), None)
    return f"{mark} {note}" if mark else note


def _dots_per_inch(pixels: int) -> float:
    """Returns about `DOTS_PER_INCH`, rounded so that a pixel is a whole number of dots and at least one."""
    dots = max(1, round(SIDE * DOTS_PER_INCH / pixels))
    return dots * pixels / SIDE


def _draw_group(figure: Figure, group: _GridGroup, images_BHWC: NDArray[np.uint8], left: float, top: float) -> None:
    width, height = figure.get_size_inches()
    for row, note_lines in zip(group.rows, group.note_lines, strict=True):
        for column, image in enumerate(row):
            x = left + column * (SIDE + GAP)
            axes = figure.add_axes((x / width, 1 - (top + SIDE) / height, SIDE / width, SIDE / height))
            axes.imshow(images_BHWC[image], aspect="auto", interpolation="nearest")
            axes.set_axis_off()
            for i, line in enumerate(group.notes.get(image, [])):
                place = (x, top + SIDE + GAP / 2 + i * NOTE_LINE)
                place_text(figure, place, line, fontsize=NOTE_POINTS, color=GREY)
        top += SIDE + GAP + NOTE_LINE * note_lines
    for i, line in enumerate(group.caption):
        place_text(figure, (left, top + i * CAPTION_LINE), line, fontsize=TEXT_POINTS)
