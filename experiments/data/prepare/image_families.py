"""Groups the rows that have one image, so that none of them is trained on while another is validated with.

Tables such as those of COCO and Flickr30k have five rows for an image, each with another caption. If these rows were
divided one by one, most validation images would be training images too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Families:
    """Holds the family of variants of each row, None for a row that cannot be used, or no families at all."""

    of_rows: Sequence[str | None] | None = None
    num_repeated: int = 0
    """The number of images that several rows of a table have; the rows of each of them are a family."""


def families_of_images(images: Sequence[Hashable], num_rows: int) -> Families:
    """Returns the families of `num_rows` rows, of which those of one image are one; none where each has its own image.

    `images` says which image a row has. It is None for a row that has no image, which has no family, as have the rows
    that follow the last of `images`. A family is called by the number of its first row, so that the division does not
    depend on where the source lies.
    """
    num_repeated = sum(count > 1 for image, count in Counter(images).items() if image is not None)
    if not num_repeated:
        return Families()
    first: dict[Hashable, str] = {}
    families = [
        None if image is None else first.setdefault(image, f"row {row:012d}") for row, image in enumerate(images)
    ]
    return Families(families + [None] * (num_rows - len(families)), num_repeated)
