"""Draws the pictures of `experiments/evaluation/independent/`, on which `ecdit evaluate --check-judge` tests the judge.

The judge compares a picture with renders of the data's own drawing code, so that renders cannot show an error that both
share (a circle drawn where the caption says "square"). This script therefore shares no line with that code: it imports
nothing of the project, it has the outlines of the eight shapes and the values of the eight colours from their words,
and Pillow rasterises them. Run `python tests/draw_independent_pictures.py` to draw the pictures again.

x runs right and y down, in pixels of the picture; outlines are in units of an object's radius.
"""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parents[1] / "experiments" / "evaluation" / "independent"
SIZE = 32
SUPERSAMPLING = 16
"""Pillow draws without anti-aliasing, so that each pixel is the mean over so many in each direction."""

Thing = tuple[str, str, float, float, float]
"""Colour, shape, x and y of the centre, and radius."""
Picture = tuple[str, int, list[Thing]]
"""Caption, grey of the background in 0 to 255, and what is drawn on it."""
Outline = list[tuple[float, float]]

RGB = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
    "magenta": (255, 0, 255), "cyan": (0, 255, 255), "black": (0, 0, 0), "white": (255, 255, 255),
}  # fmt: skip


def ellipse(radius: float, x: float = 0.0, steps: int = 180) -> Outline:
    """A circle around (x, 0) as a polygon."""
    angles = [2 * math.pi * step / steps for step in range(steps)]
    return [(x + radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def rectangle(half_width: float, half_height: float) -> Outline:
    """Around the centre."""
    w, h = half_width, half_height
    return [(-w, -h), (w, -h), (w, h), (-w, h)]


def heart() -> Outline:
    """The curve (16 sin^3 t, 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t), its tip below."""
    times = [2 * math.pi * step / 180 for step in range(180)]
    across = [16 * math.sin(t) ** 3 for t in times]
    up = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in times]
    return [(x / 16, -(y + 2.5) / 16) for x, y in zip(across, up, strict=True)]


ARM = 0.28
OUTLINES: dict[str, tuple[Outline, Outline | None]] = {
    "circle": (ellipse(1.0), None),
    "square": (rectangle(0.95, 0.95), None),
    "triangle": ([(0.0, -0.9), (1.0, 0.9), (-1.0, 0.9)], None),
    "cross": (
        [(-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM),
         (ARM, 1), (-ARM, 1), (-ARM, ARM), (-1, ARM), (-1, -ARM), (-ARM, -ARM)],
        None,
    ),
    "ring": (ellipse(1.0), ellipse(0.58)),
    "moon": (ellipse(1.0), ellipse(0.75, x=0.55)),
    "bar": (rectangle(1.0, 0.42), None),
    "heart": (heart(), None),
}  # fmt: skip
"""What is filled, and what is cut out of it. The proportions are those of the data's shapes."""
PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in OUTLINES}


def draw(picture: Picture) -> Image.Image:
    """The picture, RGB, 32 pixels."""
    _, grey, things = picture
    canvas = Image.new("RGB", (SIZE, SIZE), (grey, grey, grey))
    for color, shape, x, y, radius in things:
        filled, cut = OUTLINES[shape]
        mask = Image.new("L", (SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING))
        pen = ImageDraw.Draw(mask)
        for outline, value in ((filled, 255), (cut, 0)):
            if outline is not None:
                corners = [((x + u * radius) * SUPERSAMPLING, (y + v * radius) * SUPERSAMPLING) for u, v in outline]
                pen.polygon(corners, fill=value)
        canvas.paste(RGB[color], mask=mask.reduce(SUPERSAMPLING))
    return canvas


def pictures() -> list[Picture]:
    """Six pictures or more of every shape and every colour, of all six kinds of captions."""
    shapes, colors, greys = list(OUTLINES), list(RGB), cycle((96, 112, 128, 144, 160))
    found: list[Picture] = []
    for number, shape in enumerate(shapes):
        color, other = colors[(number + 3) % 8], colors[(number + 6) % 8]
        found.append((f"a {shape}", next(greys), [(color, shape, 14.3 + number / 3, 17.2, 5.2 + number * 0.35)]))
        found.append((f"a {other} {shape}", next(greys), [(other, shape, 17.6, 13.8 + number / 2, 7.6 - number / 3)]))
    for number, shape in enumerate(shapes):
        count, color = 2 + number % 3, colors[(number + 1) % 8]
        places = [(8.2, 8.6), (23.4, 9.3), (9.1, 23.7), (24.2, 22.9)][:count]
        word = {2: "two", 3: "three", 4: "four"}[count]
        caption = f"{word} {color} {PLURALS[shape]}"
        found.append((caption, next(greys), [(color, shape, x, y, 4.9 + number / 20) for x, y in places]))
    for number, shape in enumerate(shapes):
        other, color, second = shapes[(number + 3) % 8], colors[number], colors[(number + 5) % 8]
        things = [(color, shape, 9.0, 10.4 + number, 5.4), (second, other, 23.1, 20.8 - number, 5.8)]
        named = f"a {color} {shape} and a {second} {other}" if number % 2 else f"a {shape} and a {other}"
        found.append((named, next(greys), things))
    for number, shape in enumerate(shapes):
        relation = ("left of", "right of", "above", "below")[number % 4]
        right, down = {"left of": (-7, 1), "right of": (7, 2), "above": (2, -7), "below": (-1, 7)}[relation]
        other, color, second = shapes[(number + 5) % 8], colors[(number + 4) % 8], colors[(number + 7) % 8]
        things = [(color, shape, 16.0 + right, 16.0 + down, 5.3), (second, other, 16.0 - right, 16.0 - down, 5.6)]
        found.append((f"a {color} {shape} {relation} a {second} {other}", next(greys), things))
    return found


def main() -> None:
    """Write the pictures and their captions."""
    FOLDER.mkdir(exist_ok=True)
    lines = []
    for number, picture in enumerate(pictures()):
        name = f"{number:02d}.png"
        draw(picture).save(FOLDER / name, optimize=True)
        lines.append(f"{name}\t{picture[0]}\n")
    (FOLDER / "captions.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
