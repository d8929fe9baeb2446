"""Groups the rows that name one image, so that none of them is trained on while another is validated with.

Tables such as those of COCO and Flickr30k have five rows for an image, each with another caption. If these rows were
divided one by one, most validation images would be training images too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def families_of_images(images: Sequence[Hashable], num_rows: int) -> tuple[list[str | None] | None, int]:
    """Returns the family of each of `num_rows` rows, and how many images several rows name; (None, 0) for no such one.

    `images` says which image a row has. It is None for a row that names no image, which has no family, as have the rows
    that follow the last of `images`. A family is called by the number of its first row, so that the division does not
    depend on where the source lies.
    """
    num_repeated = sum(count > 1 for image, count in Counter(images).items() if image is not None)
    if not num_repeated:
        return None, 0
    first: dict[Hashable, str] = {}
    families = [
        None if image is None else first.setdefault(image, f"row {row:012d}") for row, image in enumerate(images)
    ]
    return families + [None] * (num_rows - len(families)), num_repeated
