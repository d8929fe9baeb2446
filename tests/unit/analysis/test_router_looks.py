"""Routers of a family differ in colour (also with each common kind of colour blindness), dashes and marker."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from analysis.arms import in_order
from analysis.figures.family_panels import MOST_TOGETHER, family_panels
from analysis.router_looks import SPARE_COLORS, router_look
from analysis.style import line_style, marker_style
from experiments.config.routers import FAMILIES, ROUTERS, Family, RouterRow, router_family

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "without red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "without green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "without blue": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
LEAST_DISTANCE = 15.0
"""In CIELAB, where 2.3 is a difference that is just noticeable."""


def lab(color: str, vision: str) -> NDArray[np.float64]:
    given = np.array(to_rgb(color))
    linear = np.where(given <= 0.04045, given / 12.92, ((given + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(VISION[vision] @ linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vision", VISION)
def test_routers_of_a_family_are_told_apart_by_colour_with_every_vision(
    family: Family, vision: str, many_routers: list[str]
) -> None:
    drawn = ["dense", *(name for name in many_routers if router_family(name) == family != "dense")]
    for one, other in combinations(drawn, 2):
        apart = lab(router_look(one).color, vision) - lab(router_look(other).color, vision)
        assert np.linalg.norm(apart) > LEAST_DISTANCE, (one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_routers_of_a_family_are_told_apart_in_grey(family: Family, many_routers: list[str]) -> None:
    ours = [name for name in many_routers if router_family(name) == family]
    assert len({str(line_style(name, 0)["linestyle"]) for name in ours}) == len(ours)
    assert len({marker_style(name, 0, "")["marker"] for name in ours}) == len(ours)


def test_routers_of_the_first_studies_keep_their_colours() -> None:
    first = {
        "dense": "#000000", "expert_choice": "#D55E00", "token_choice": "#0072B2", "switch": "#56B4E9",
        "shared_expert": "#009E73",
    }  # fmt: skip
    assert {name: router_look(name).color for name in first} == first
    assert len(family_panels(first)) == 1


def test_many_routers_get_a_panel_for_each_family_with_dense_in_each(many_routers: list[str]) -> None:
    panels = family_panels(many_routers)
    assert len(panels) == len({router_family(name) for name in many_routers} - {"dense"})
    assert all("dense" in panel.routers for panel in panels)
    routed = [name for panel in panels for name in panel.routers if name != "dense"]
    assert sorted(routed) == sorted(set(many_routers) - {"dense"})
    for panel in panels:
        assert len({router_look(name).color for name in panel.routers}) == len(panel.routers)


def test_two_routers_of_one_colour_do_not_share_a_panel(many_routers: list[str]) -> None:
    alike = next(
        pair for pair in combinations(many_routers, 2) if router_look(pair[0]).color == router_look(pair[1]).color
    )
    assert len(family_panels(alike)) == 2


def test_a_family_of_many_routers_has_several_panels_of_different_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    more = [f"more{i}" for i in range(9)]
    for name in more:
        monkeypatch.setitem(ROUTERS, name, RouterRow(name, label=name, implementation=None, family="pairs"))
    panels = family_panels(["dense", *more])
    assert [panel.title for panel in panels] == ["Pairs of both compete, 1 of 2", "Pairs of both compete, 2 of 2"]
    for panel in panels:
        assert len(panel.routers) <= MOST_TOGETHER + 1
        assert len({router_look(name).color for name in panel.routers}) == len(panel.routers)


def test_the_family_of_a_row_follows_from_its_rule_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"a": {"top_k": 2}, "b": {}, "c": {"family": "fixed", "top_k": 1}}
    for name, given in rows.items():
        row = RouterRow(name, label=name, implementation=None, **given)  # type: ignore[arg-type]
        monkeypatch.setitem(ROUTERS, name, row)
    assert [router_family(name) for name in ("dense", *rows)] == ["dense", "tokens", "experts", "fixed"]
    assert in_order(["c", "b", "a", "dense"]) == ["dense", "a", "b", "c"]


def test_a_router_that_is_not_loaded_has_a_look_and_a_panel_of_its_own(many_routers: list[str]) -> None:
    assert router_look("unknown") == router_look("unknown")
    assert router_look("unknown").color in SPARE_COLORS
    assert family_panels([*many_routers, "unknown"])[-1].routers == {"dense", "unknown"}
    assert in_order(["unknown", "dense"]) == ["dense", "unknown"]
