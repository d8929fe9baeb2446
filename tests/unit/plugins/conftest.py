"""A process without plugins, and plugins written for a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.figures.registry import FIGURES
from experiments.config.metrics import METRICS
from experiments.config.routers import ROUTERS
from experiments.plugins import loading
from experiments.plugins.sources import SOURCES

EXAMPLE = Path(__file__).parents[3] / "docs" / "how-to" / "examples" / "stripes.py"
WritePlugin = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test begins without plugins, and what it loads is forgotten."""
    monkeypatch.setenv(loading.VARIABLE, "")
    states: list[dict | set] = [ROUTERS, METRICS, FIGURES, SOURCES, loading._loaded]
    before = [state.copy() for state in states]
    loading._loaded.clear()
    yield
    for state, content in zip(states, before, strict=True):
        state.clear()
        state.update(content)
    os.environ.pop(loading.VARIABLE, None)


@pytest.fixture
def write_plugin(tmp_path: Path) -> WritePlugin:
    """`write_plugin(old="new")`: the example of the docs with these replacements, which must each occur."""

    def write(name: str = "mine.py", **replaced: str) -> Path:
        text = EXAMPLE.read_text()
        for old, new in replaced.items():
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
