"""The look of every router: its colour, its dashes and its marker, none of which repeats inside a family.

Seven colours remain distinct beside black with all common kinds of colour blindness: six of Okabe and Ito's, and wine
in place of their yellow, which is too pale for lines. A figure of twenty routers therefore has a panel for each family,
which is the rule of the choice (`RouterRow.family`, `figures/family_panels.py`). Colours repeat between families only.
Dashes and markers are counted anew in each family, so that its routers can also be told apart in grey. A colour that
the row of a router names is kept; each of the others gets the one that none of its family and fewest of the rest have.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import NamedTuple

from experiments.config.routers import ROUTERS, Family, router_family

SPARE_COLORS = ("#CC79A7", "#E69F00", "#882255")
"""Colours that no row names, which a router without a colour gets first."""
NAMED_COLORS = ("#D55E00", "#0072B2", "#009E73", "#56B4E9")
"""Colours that rows name, and that routers of other families get where the spare ones are taken."""
# fmt: off
DASHES: list[tuple[float, ...]] = [(), (4, 1.2), (1.1, 1.1), (5, 1.2, 1.1, 1.2), (7, 2), (4, 1, 1, 1, 1, 1), (2, 2)]
# fmt: on
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers of routers, where all models have one size; else a marker stands for the size."""
FIRST_DASHES: dict[Family | None, int] = {"dense": 0, "experts": 0}
"""The paper's two arms, dense and expert choice, have full lines; other families begin with the next dashes."""


class RouterLook(NamedTuple):
    """The colour of a router, the place of its dashes in `DASHES` before variants are counted, and its marker."""

    color: str
    dashes: int
    marker: str


def router_look(router: str) -> RouterLook:
    """Returns the look of a router, also where its plugin is not loaded: it then follows from the name alone."""
    rows = tuple((name, router_family(name), row.color) for name, row in ROUTERS.items())
    if router in ROUTERS:
        return _looks(rows)[router]
    place = zlib.crc32(router.encode())
    return RouterLook(SPARE_COLORS[place % len(SPARE_COLORS)], place % len(DASHES), MARKERS[place % len(MARKERS)])


@lru_cache(maxsize=8)
def _looks(rows: tuple[tuple[str, Family | None, str | None], ...]) -> dict[str, RouterLook]:
    """Returns the look of each of `rows`, which are names with their family and the colour of their row."""
    pool = (*SPARE_COLORS, *NAMED_COLORS)
    colors = {name: color for name, _, color in rows if color is not None}
    families = {name: family for name, family, _ in rows}
    for name, family, color in rows:
        if color is None:
            used = list(colors.values())
            taken = [colors[other] for other in colors if families[other] == family]
            colors[name] = min(pool, key=lambda each: (taken.count(each), used.count(each)))
    looks: dict[str, RouterLook] = {}
    for name, family, _ in rows:
        place = sum(families[other] == family for other in looks)
        first = FIRST_DASHES.get(family, 1)
        looks[name] = RouterLook(colors[name], (first + place) % len(DASHES), MARKERS[place % len(MARKERS)])
    return looks
