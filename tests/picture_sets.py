"""Small prepared sets of pictures of which the truth is known: one thing of a colour and a shape at a place.

Images of all splits come from one distribution. A shard of the training split is made the held-out one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.config.prepared_set import INDEX_FILE, fingerprint_of
from experiments.data.prepare.job import prepare
from experiments.data.prepare.request import Request
from experiments.data.scenes.objects import COLORS, Object, render
from experiments.records.storage import write_json_atomic

SIDE = 16
SHAPES = ("circle", "cross", "bar")
ROWS, COLUMNS = {"top": 4, "middle": 8, "bottom": 12}, {"left": 4, "centre": 8}
LOOKS = [(color, shape, row, column) for color in COLORS for shape in SHAPES for row in ROWS for column in COLUMNS]
NUM_VALIDATION = 200


def drawn(number: int) -> tuple[Image.Image, str]:
    """One picture with its caption; each look comes once in `len(LOOKS)`."""
    random = np.random.default_rng(number)
    color, shape, row, column = LOOKS[number % len(LOOKS)]
    x, y = (at + random.uniform(-0.7, 0.7) for at in (COLUMNS[column], ROWS[row]))
    thing = Object(color, shape, x, y, random.uniform(3.0, 3.6))
    (image,) = render([[thing]], [random.uniform(0.35, 0.65)], SIDE)
    pixels = ((image + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(pixels), f"{color} {shape} {row} {column}"


def write_pictures(folder: Path, num_images: int, with_captions: bool) -> Path:
    """Images in folders by colour, which are their classes unless there are captions."""
    lines = []
    for number in range(num_images):
        image, caption = drawn(number)
        name = f"{caption.split()[0]}/{number:04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
        lines.append(json.dumps({"file_name": name, "caption": caption}))
    if with_captions:
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prepared_pictures(
    folder: Path, num_images: int = 5 * len(LOOKS), held_out: bool = True, **settings: object
) -> Path:
    """Prepares a set in `folder`; its first training shard becomes held out."""
    source = folder.with_name(f"{folder.name} source")
    write_pictures(source, num_images, with_captions=settings.get("text") != "labels")
    given = {"text": "static", "image_size": SIDE, "shard_images": 64, "validation_images": NUM_VALIDATION, **settings}
    prepare(Request(source=str(source), **given), folder)  # type: ignore[arg-type]
    if held_out:
        content = json.loads((folder / INDEX_FILE).read_text())
        first = next(shard for shard in content["shards"] if shard["split"] == "train")
        first["split"] = "held_out"
        content["fingerprint"] = fingerprint_of(content)
        write_json_atomic(folder / INDEX_FILE, content)
    return folder
