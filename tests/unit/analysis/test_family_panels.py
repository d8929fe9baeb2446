"""Figures of twenty routers: nothing lies over anything else, and every arm is named beside or in its panel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from analysis.figures.registry import find_figure
from analysis.load_records import Records, load_records
from analysis.run_table import run_table
from experiments.config.routers import FAMILIES, ROUTERS, router_family, router_label
from tests.unit.analysis.test_figures import assert_legible, rendered

Write = Callable[..., Path]
Add = Callable[..., None]
EXPERTS = {f"{number} experts": {"num_experts": number} for number in (4, 8)}
FACTORS = {f"f_c {factor}": {"capacity_factor": factor} for factor in (1.0, 2.0)}
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "expert-scaling": EXPERTS,
    "capacity": FACTORS,
}
FEW_RESAMPLES: dict[str, dict[str, Any]] = {"scaling-law": {"num_resamples": 5}}
FITS = ("isoflop", "scaling-law")
GROUPED = [
    "loss-convergence", "routing", "per-timestep-loss", "alignment", "guidance", "quality-over-training",
    "best-guidance", "inference-time", "comparison", "memory", *STUDIES, *FITS,
]  # fmt: skip
EIGHT = ("expert_choice", "nucleus", "moma", "expert_race", "hash", "random", "switch", "token_choice")
"""One router more than share a panel."""


def arms_of(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """An arm for each router and each of `settings`, with dense once."""
    arms: dict[str, Any] = {"dense": ({}, {"name": "dense"}, 1e-5)}
    for i, router in enumerate(name for name in ROUTERS if name != "dense"):
        for name, given in settings.items():
            slope = 1e-5 + 4e-7 * i + 1e-8 * len(arms)
            arms[f"{router} {name}"] = ({}, {"name": router, **given}, slope)
    return arms


@pytest.fixture
def many(
    many_routers: list[str], write_arms: Write, write_budgets: Write, write_powers: Write, evaluate: Add,
    map_routing: Add, measure_costs: Add,
) -> Callable[[str], Records]:  # fmt: skip
    """Records of all routers, with what a figure needs."""

    def write(figure: str) -> Records:
        fitted = {router: ({}, {"name": router}) for router in many_routers}
        if figure == "isoflop":
            return load_records([write_budgets(budgets=(1e12,), widths=(48, 64, 96), arms=fitted)])
        if figure == "scaling-law":
            return load_records([write_powers((800, 1600, 3200, 6400, 12800), (48,), seeds=(0,), arms=fitted)])
        folder = write_arms(arms_of(STUDIES.get(figure, {"alone": {}})), seeds=(0,))
        if figure not in STUDIES:
            evaluate(folder)
            measure_costs(folder)
        return load_records([folder])

    return write


def said(figure: Figure) -> str:
    """All text of a figure, with the lines of a label joined and without the marks of formulas."""
    texts = [*figure.findobj(Text), *(text for legend in figure.findobj(Legend) for text in legend.get_texts())]
    return "\n".join(" ".join(text.get_text().split()) for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPED)
def test_twenty_routers_are_legible_and_all_named(name: str, many: Callable[[str], Records]) -> None:
    records = many(name)
    drawing = find_figure(name).draw(records, run_table(records), **FEW_RESAMPLES.get(name, {}))
    assert_legible(rendered(drawing.figure))
    text = said(drawing.figure)
    shown = set(ROUTERS) - ({"dense"} if name == "capacity" else set())  # dense has no capacity
    assert not [router for router in shown if router_label(router) not in text]


@pytest.mark.parametrize("name", ["routing", "per-timestep-loss", "alignment"])
def test_panels_of_families_share_their_limits_and_hold_dense(name: str, many: Callable[[str], Records]) -> None:
    records = many(name)
    figure = find_figure(name).draw(records, run_table(records)).figure
    titled = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titled) == len(FAMILIES) - 1  # dense is in every panel
    assert len({axes.get_ylim() for axes in titled}) == 1
    assert all(any(line.get_color() == "#000000" for line in axes.get_lines()) for axes in titled)


@pytest.mark.parametrize("name", ["quality-over-training", "guidance", "loss-convergence", "per-timestep-loss"])
def test_a_setup_without_a_family_has_no_panel_of_it(
    name: str, write_arms: Write, evaluate: Add, measure_costs: Add
) -> None:
    arms = {router: ({}, {"name": router}, 1e-5) for router in EIGHT}
    write_arms(arms, seeds=(0,))
    folder = write_arms({"expert_choice": arms["expert_choice"]}, seeds=(0,), presets=("micro",))
    evaluate(folder)
    measure_costs(folder)
    records = load_records([folder])
    drawing = find_figure(name).drawing(records, run_table(records))
    titles = [axes.get_title(loc="left") for axes in drawing.figure.axes if axes.get_title(loc="left")]
    assert [title for title in titles if title.startswith("micro")] == ["micro: Experts choose tokens"]
    assert len(titles) == len({router_family(router) for router in EIGHT}) + 1
