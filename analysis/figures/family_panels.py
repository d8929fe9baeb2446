"""Small multiples for figures of many routers: a panel for each family, with dense in each and keys beside it.

Up to seven routers of different colours share one panel, as in the paper. Above that, or where two routers have one
colour, a figure draws the panel once for each family of `router_looks.py`, with the same limits of the axes, so that
panels can be compared. Dense is the black reference in every one of them. A family of more than seven routers has
several panels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from analysis.arms import in_order
from analysis.figures.grid import Key
from analysis.style import KEY_POINTS, router_color, shown, wrapped
from experiments.config.routers import Family, router_family

MOST_TOGETHER = 7
"""The most routers in one panel; there are as many dashes and markers of routers."""
COLUMNS = 2
"""The panels in a row where each has keys beside it."""
KEY_LINE_INCHES = 0.155
ABOVE_KEYS_INCHES = 0.6
"""The part of the height of a row of panels that is not for keys: title, ticks and label."""
KEY_INCHES = 1.25
"""The width of the labels of keys beside a panel, at which they are broken into lines."""
TITLES: dict[Family | None, str] = {
    "tokens": "Tokens choose experts",
    "experts": "Experts choose tokens",
    "pairs": "Pairs of both compete",
    "thresholds": "Thresholds admit pairs",
    "soft": "All tokens are mixed into slots",
    "blocks": "Experts change whole blocks",
    "fixed": "Fixed by position, chance, time or batch",
    None: "Rule not known",
}


class FamilyPanel(NamedTuple):
    """The routers of one panel, dense among them where it was run, and the title of their family.

    The title is empty where all routers share the panel.
    """

    title: str
    routers: frozenset[str]

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of the routers of this panel."""
        return frame[frame["routing.name"].isin(self.routers)]

    def named(self, name: str) -> str:
        """Returns the title of a panel that would be called `name` if all routers shared it."""
        return ": ".join(filter(None, (name, self.title)))


def family_panels(routers: Iterable[str]) -> list[FamilyPanel]:
    """Returns the panels for these routers: one where they are few and look different, else one for each family."""
    names = set(routers)
    if len(names) <= MOST_TOGETHER and len({router_color(name) for name in names}) == len(names):
        return [FamilyPanel("", frozenset(names))]
    panels = []
    for family, title in TITLES.items():
        ours = in_order([name for name in names if router_family(name) == family])
        number = -(-len(ours) // MOST_TOGETHER)
        for i in range(number):
            part = ours[i * MOST_TOGETHER : (i + 1) * MOST_TOGETHER]
            of_several = f", {i + 1} of {number}" if number > 1 else ""
            panels.append(FamilyPanel(title + of_several, frozenset(part) | (names & {"dense"})))
    return panels


def share_limits(panels: Sequence[Axes], axes_names: str = "xy") -> None:
    """Gives all panels the limits that hold what is drawn in any of them, on the named axes."""
    for which in axes_names:
        ends = [getattr(axes, f"get_{which}lim")() for axes in panels]
        for axes in panels:
            axes.set(**{f"{which}lim": (min(low for low, _ in ends), max(high for _, high in ends))})


def key_lines(label: str) -> list[str]:
    """Returns the lines of a key beside a panel."""
    return wrapped(label, KEY_INCHES, KEY_POINTS)


def with_marks(points: pd.DataFrame, panels: Sequence[FamilyPanel]) -> pd.DataFrame:
    """Returns `points` with an empty `model.name` where there are several panels and one size.

    A marker need not stand for the size then, and `style.marker_style` gives the router's.
    """
    is_free = len(panels) > 1 and points["model.name"].nunique() == 1
    return points.assign(**{"model.name": ""}) if is_free else points


def keys_beside(axes: Axes, keys: Sequence[Key]) -> None:
    """Places keys at the right of a panel, where they cover no data, with long labels broken into lines."""
    labels = ["\n".join(map(shown, key_lines(label))) for _, label in keys]
    handles = [handle for handle, _ in keys]
    axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), borderaxespad=0, handlelength=2.6)


def height_beside_keys(drawn: Sequence[tuple[str, pd.DataFrame]], least: float) -> float:
    """Returns the inches of a row of panels, so that the keys of every panel of `parts` have room beside it."""
    lines = [sum(len(key_lines(label)) for label in dict.fromkeys(rows["arm"])) for _, rows in drawn]
    return max(least, KEY_LINE_INCHES * max(lines) + ABOVE_KEYS_INCHES)


def parts(points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Returns a title and the points of each panel: one for every setup, and for every family in it where many."""
    panels, found = family_panels(points["routing.name"]), []
    for setup, ours in with_marks(points, panels).groupby("setup", sort=False):
        split = [(panel.named(str(setup)), panel.of(ours)) for panel in panels]
        found += [(title, rows) for title, rows in split if len(panels) == 1 or (rows["routing.name"] != "dense").any()]
    return found


def share_limits_of_setups(panels: Sequence[Axes], setups: Sequence[str]) -> None:
    """Gives the panels of each setup the same limits; `setups` names that of each panel."""
    for setup in dict.fromkeys(setups):
        share_limits([axes for axes, its in zip(panels, setups, strict=True) if its == setup])
