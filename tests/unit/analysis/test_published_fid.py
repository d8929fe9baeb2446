"""Every published value carries its source and backbone, and the page says that papers disagree."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.compare import compare, comparison_json, comparison_markdown
from analysis.load_records import load_records
from analysis.published_fid import DISAGREEMENT, PUBLISHED, published_rows


def test_every_value_has_a_source_with_its_number_and_a_backbone() -> None:
    assert all(re.search(r"\(arXiv \d{4}\.\d{5}\)$", each.source) for each in PUBLISHED)
    assert all(each.backbone and each.fid > 0 for each in PUBLISHED)


def test_no_value_stands_twice() -> None:
    keys = [(each.model, each.guidance, each.steps, each.source) for each in PUBLISHED]
    assert len(keys) == len(set(keys))


def test_the_main_table_is_of_one_setting() -> None:
    main = [each for each in PUBLISHED if each.is_main]
    assert len(main) == len(published_rows(main_only=True)) == 9
    assert {(each.guidance, each.steps) for each in main} == {(1.0, "700K")}


def test_the_disagreement_is_of_the_values_in_the_table() -> None:
    fids = {each.fid for each in PUBLISHED if each.router == "diffmoe" and each.model.startswith("DiffMoE L-E16")}
    found = {float(number) for number in re.findall(r"\d+\.\d\d", DISAGREEMENT)}
    assert found <= fids
    assert max(found) - min(found) == pytest.approx(3, abs=0.5)


def test_rows_are_those_of_the_routers_asked_for() -> None:
    assert {row["router"] for row in published_rows(["dense", "switch_dit"])} == {"dense", "switch_dit"}
    assert published_rows(["loss_free"]) == []
    assert len(published_rows()) == len(PUBLISHED)


def test_the_comparison_shows_them_in_a_table_of_their_own(write_arms: Callable[..., Path]) -> None:
    comparison = compare(load_records([write_arms(seeds=(0,))]))
    page = comparison_markdown(comparison)
    section = page.split("## Published FID of other models")[1].split("## Notes")[0]
    assert DISAGREEMENT.split(":")[0] in section
    assert sum(line.startswith("| ") for line in section.splitlines()) == len(PUBLISHED) + 2
    rows = {row["arm"]: row for row in comparison_json(comparison)}
    assert {each["router"] for each in rows["Expert choice"]["published_fid"]} == {"expert_choice"}
    assert rows["Expert choice"]["alarms"] == []
