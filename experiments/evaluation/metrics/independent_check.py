"""Checks that the judge of `shapes-geneval` reads pictures which the data's own drawing code did not draw.

The judge's templates are renders of that code, so that an error in it (circle and square exchanged, a moon rotated, two
colours mixed up) is in the renders and in the judge alike, and renders cannot reveal it. The 40 pictures of
`independent/` were drawn by another rasteriser from other outlines (`tests/draw_independent_pictures.py`) and were
checked by eye; `captions.txt` beside them says what they show.

Legend: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.data.scenes.captions import Assertion, parse
from experiments.errors import RunFailedError
from experiments.evaluation.metrics.judge import Verdict, judge

FOLDER = Path(__file__).with_name("independent")


@dataclass(frozen=True)
class Misread:
    """One picture whose caption the judge denies."""

    file: str
    caption: str
    verdict: Verdict

    @property
    def missing_shapes(self) -> list[str]:
        """Returns the shapes that the caption names and the judge did not see."""
        wanted = Counter({term.shape: term.count for term in parse(self.caption).terms})
        return list(wanted - Counter(thing.shape for thing in self.verdict.found if thing.shape))

    def __str__(self) -> str:
        """Returns a description such as `'a circle' (00.png), in which it sees yellow square`."""
        seen = " and ".join(f"{thing.color} {thing.shape or 'thing of no shape'}" for thing in self.verdict.found)
        return f"{self.caption!r} ({self.file}), in which it sees {seen or 'nothing'}"


@dataclass(frozen=True)
class IndependentPictures:
    """Pictures, float32 [B, 3, H, W] in [-1, 1], with the name of each file and its caption."""

    images_BCHW: Tensor
    files: list[str]
    captions: list[str]

    @property
    def assertions(self) -> list[Assertion]:
        """Returns the assertions of the captions."""
        return [parse(caption) for caption in self.captions]


def independent_pictures(folder: Path = FOLDER) -> IndependentPictures:
    """Loads the pictures that ship with the package."""
    lines = (folder / "captions.txt").read_text(encoding="utf-8").splitlines()
    files, captions = zip(*(line.split("\t") for line in lines), strict=True)
    images = []
    for file in files:
        with Image.open(folder / file) as picture:
            images.append(torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1))
    return IndependentPictures(torch.stack(images).float() / 127.5 - 1, list(files), list(captions))


def misread_pictures(pictures: IndependentPictures) -> list[Misread]:
    """Returns the pictures whose caption the judge denies; none when the judge is right."""
    verdicts = judge(pictures.images_BCHW, pictures.assertions)
    found = zip(pictures.files, pictures.captions, verdicts, strict=True)
    return [Misread(file, caption, verdict) for file, caption, verdict in found if not verdict.correct]


def require_all_read(misread: Sequence[Misread], num_pictures: int) -> None:
    """Raises `RunFailedError` that names the shapes which were not recognised, if any picture was misread."""
    if not misread:
        return
    shapes = Counter(shape for each in misread for shape in each.missing_shapes)
    named = f" Shapes that it does not recognise: {', '.join(shapes)}." if shapes else ""
    raise RunFailedError(
        f"the judge misreads {len(misread)} of {num_pictures} pictures that were drawn independently of the data, "
        f"for example {misread[0]}.{named}",
        "The drawing code of the data (experiments/data/scenes) or the judge is wrong: trust no score of it.",
    )
