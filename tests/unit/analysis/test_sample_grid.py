"""A grid of samples: every image with whole pixels, every text below its own image, nothing over anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from analysis.figures.sample_grid import MOST_IMAGES, draw_sample_grid, num_captions_shown
from analysis.style import wrapped, write_png
from experiments.errors import StorageError

CAPTIONS = ["a red circle", "two green hearts and a caption that needs many lines " * 2, "$5 or $6", "x" * 90]
NOTES = ["right", "wrong: colour", "", "wrong: number of objects, colour and place"]


def images(number: int, side: int = 32) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (number, side, side, 3), np.uint8)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize(
    ("captions", "per_caption"), [(CAPTIONS, 1), (CAPTIONS, 2), (CAPTIONS[:1], 1), (CAPTIONS * 3, 1), (CAPTIONS[:2], 8)]
)
@pytest.mark.parametrize("noted", [True, False])
def test_nothing_lies_over_anything_else(captions: Sequence[str], per_caption: int, noted: bool) -> None:
    number = len(captions) * per_caption
    notes = (NOTES * number)[:number] if noted else None
    figure = draw_sample_grid(images(number), captions, notes, per_caption)
    FigureCanvasAgg(figure).draw()
    boxes = [thing.get_window_extent() for thing in (*figure.texts, *figure.axes)]
    assert len(figure.axes) == number
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize(("side", "dots"), [(32, 6), (64, 3), (256, 1), (30, 6)])
def test_every_pixel_is_a_whole_number_of_dots(side: int, dots: int, tmp_path: Path) -> None:
    given = images(2, side)
    write_png(draw_sample_grid(given, ["a", "b"]), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        drawn = np.asarray(picture.convert("RGB"))
    enlarged = given[0].repeat(dots, 0).repeat(dots, 1)
    window = np.lib.stride_tricks.sliding_window_view(drawn[:, :, 0], (1, dots * side))
    rows, columns = np.where((window[:, :, 0] == enlarged[0, :, 0]).all(axis=-1))
    assert len(rows) == dots
    found = drawn[rows[0] :, columns[0] :][: dots * side, : dots * side]
    assert (found == enlarged).all()


@pytest.mark.parametrize(
    ("num_captions", "per_caption", "shown"),
    [(6, 1, 6), (MOST_IMAGES, 1, MOST_IMAGES), (MOST_IMAGES + 1, 1, MOST_IMAGES), (553, 4, 250), (3, MOST_IMAGES, 1)],
)
def test_a_grid_of_many_images_shows_the_first_captions(num_captions: int, per_caption: int, shown: int) -> None:
    assert num_captions_shown(num_captions, per_caption) == shown


def test_the_caption_stands_once_below_its_images_and_marks_differ_in_form() -> None:
    figure = draw_sample_grid(images(2), ["a red circle"], ["right", "wrong: colour"], 2)
    assert texts(figure) == ["✓ right", "✗ wrong: colour", "a red circle"]


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_png(draw_sample_grid(images(2), ["a", "b"], ["right", "wrong"]), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*/file: file exists"):
        write_png(draw_sample_grid(images(1), ["a"]), tmp_path / "file" / "grid.png")


def test_lines_are_wrapped_between_words_and_only_a_long_word_is_broken() -> None:
    assert wrapped("a well-kept library", 10, 7) == ["a well-kept library"]
    assert wrapped("aa bb", 0.2, 7) == ["aa", "bb"]
    assert "".join(wrapped("x" * 90, 1, 7)) == "x" * 90
    assert wrapped("", 1, 7) == []
