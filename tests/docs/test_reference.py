"""The reference pages hold every command, option and setting, since they are made from the code."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest

from experiments.config.overrides import known_settings
from experiments.config.presets import PRESETS
from experiments.config.routers import ROUTERS
from tests.docs.pages import DOCS, PAGES


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    sys.path.insert(0, str(DOCS / "_generator"))
    try:
        import reference as module
    finally:
        sys.path.remove(str(DOCS / "_generator"))
    return module


def test_every_command_has_a_section_and_every_option_a_row(reference: ModuleType) -> None:
    page = reference.fill((DOCS / "reference" / "commands.md").read_text())
    assert re.findall(r"^## ecdit (.*)$", page, flags=re.MULTILINE) == list(reference.commands())
    for name, command in reference.commands().items():
        section = page.split(f"## ecdit {name}\n")[1].split("\n## ")[0]
        options = [each.opts[0] for each in command.params if each.param_type_name == "option"]
        assert all(f"| `{option}" in section for option in options), name


def test_every_setting_has_a_row_with_its_default_limits_and_meaning(reference: ModuleType) -> None:
    page = reference.fill((DOCS / "reference" / "settings.md").read_text())
    rows = {row[0]: row for line in page.splitlines() if len(row := re.split(r" ?\| ?", line.strip("| "))) == 5}
    assert {f"`{name}`" for name in known_settings()} <= set(rows)
    assert rows["`routing.group_images`"][1:4] == [
        "an integer, 'batch', 'all' or None",
        "above 0, to 1,048,576",
        "`1` (router)",
    ]
    assert rows["`optim.learning_rate`"][2:4] == ["from 1e-12, to 1e+30", "`0.002` (preset)"]
    assert all(f"| `{name}` |" in page for name in (*PRESETS, *ROUTERS))


def test_every_setting_says_what_it_means(reference: ModuleType) -> None:
    assert [key for key, field in reference.settings() if not field.description] == []


def test_every_marker_of_a_page_is_known(reference: ModuleType) -> None:
    marked = {marker for page in PAGES for marker in reference.MARKER.findall(page.read_text())}
    assert marked == set(reference.GENERATED)


def test_an_unknown_marker_is_refused(reference: ModuleType) -> None:
    with pytest.raises(KeyError, match="nonsense"):
        reference.fill("<!-- generated: nonsense -->")
