"""What is asked of a registry stays there: nothing else tells data sets apart, or computes what one place defines."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from experiments.config.caption_kinds import TokenCaptions
from experiments.config.data_sets import DATA_SETS
from experiments.config.schema import DataConfig

ROOT = Path(__file__).parents[2]
PACKAGES = ("ecdit_cli", "sweeps", "analysis", "experiments")
MODULES = {
    str(path.relative_to(ROOT)): path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}
TELLS_APART = (
    r"data\.name\s*(?:==|!=|in\b|not in\b)|data\.(?:get\()?[\"']name[\"']\)?\s*[=!]=|"
    r"(?:text|pooled)_width is (?:not )?None"
)
OF_DATA_SETS = ("experiments/config/data_sets.py", "experiments/config/caption_kinds.py", "experiments/data/sources/")


def found(pattern: str, allowed: tuple[str, ...]) -> list[str]:
    return [name for name, text in MODULES.items() if re.search(pattern, text) and not name.startswith(allowed)]


def test_only_the_registry_and_the_sources_tell_data_sets_apart() -> None:
    assert found(TELLS_APART, OF_DATA_SETS) == []


@pytest.mark.parametrize(
    "line",
    [
        'if config.data.name == "shapes":',
        'if run.config.data.name != "shapes":',
        'if data.name in ("shapes",):',
        'if data.get("name") != "latents":',
        "if data.text_width is not None and data.pooled_width is not None:",
    ],
)
def test_the_pattern_finds_what_was_there(line: str) -> None:
    assert re.search(TELLS_APART, line)


def test_a_micro_batch_is_computed_in_one_place() -> None:
    assert found(r"batch_images\s*//\s*\(", ()) == ["experiments/config/schema.py"]


def test_one_place_says_which_implementation_is_the_reference() -> None:
    assert found(r"implementation\s*[!=]=\s*[\"']reference", ()) == ["experiments/config/train_settings.py"]


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_row_is_complete(name: str) -> None:
    row = DATA_SETS[name]
    source = pkgutil.resolve_name(row.implementation)
    asked = {"check", "training", "validation", "parts"}
    if row.captions is None:
        assert row.num_classes
        asked |= {"decoder"}
    else:
        asked |= {"token_ids"} if row.captions.in_words else {"validation_captions", "null_caption", "decoder"}
        assert set(row.captions.needed) <= set(DataConfig.model_fields)
    assert asked <= set(dir(source))
    if row.captions is TokenCaptions:
        assert len(source.words) + 2 <= row.fixed["vocab_size"]  # padding and start are tokens too
    assert set(row.fixed) <= set(DataConfig.model_fields)
