"""Our arithmetic beside the numbers that the papers print."""

from __future__ import annotations

import pytest

from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.config.presets import PRESETS
from experiments.config.published import DIFFERENCES, PUBLISHED, paper_of


def increment(preset: str, num_experts: int) -> int:
    """What the experts add to the dense model of the same depth."""
    sparse = load_config([f"model={preset}", "routing=expert_choice", f"routing.num_experts={num_experts}"])
    dense = load_config([f"model={preset}", "routing=dense", f"model.num_layers={sparse.model.num_layers}"])
    return budget(sparse).params_total - budget(dense).params_total


@pytest.mark.parametrize("preset", ["XL", "XXL", "3XL"])
def test_experts_add_what_the_paper_prints(preset: str) -> None:
    printed = PUBLISHED[preset, 32].params_total - PUBLISHED[preset, 0].params_total
    assert increment(preset, 32) == pytest.approx(printed, abs=10_000_000)  # two numbers of two decimals in billions


@pytest.mark.parametrize(("preset", "agrees"), [("XL", True), ("XXL", True), ("3XL", False)])
def test_activated_parameters_agree_except_where_the_paper_contradicts_itself(preset: str, agrees: bool) -> None:
    config = load_config([f"model={preset}", "routing=expert_choice", "routing.num_experts=32"])
    dense = load_config([f"model={preset}", "routing=dense"])
    ours = budget(config).params_active - budget(dense).params_total
    active = PUBLISHED[preset, 32].params_active
    assert active is not None
    assert (ours == pytest.approx(active - PUBLISHED[preset, 0].params_total, abs=15_000_000)) == agrees


@pytest.mark.parametrize(("preset", "num_experts"), [("dit-moe-S", 8), ("dit-moe-XL", 8), ("dit-moe-G", 16)])
def test_dit_moe_is_within_five_percent(preset: str, num_experts: int) -> None:
    cost = budget(load_config([f"model={preset}", "routing=shared_expert", f"routing.num_experts={num_experts}"]))
    printed = PUBLISHED[preset, num_experts]
    assert (cost.params_total, cost.params_active) == pytest.approx(tuple(printed), rel=0.05)


def test_every_printed_row_has_a_preset_and_its_differences_in_words() -> None:
    assert {preset for preset, _ in PUBLISHED} <= set(PRESETS)
    assert {paper_of(preset) for preset, _ in PUBLISHED} == set(DIFFERENCES)
    assert paper_of("nano") is None
