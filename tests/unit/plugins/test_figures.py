"""A figure of a plugin is listed and drawn like ours, and what it does wrong is said in one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.figures.registry import FIGURES, find_figure
from analysis.load_records import Records
from analysis.style import Drawing
from experiments.errors import EcditError
from experiments.plugins.loading import load_plugins

PLUGIN = """\
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.registry import FIGURES, FigureEntry
from analysis.style import Drawing


def draw(records, table):
    {body}


OURS = list(FIGURES)
FIGURES = [FigureEntry("mine", "The number of runs.", draw, ("my-alias",), limits=())]
"""
TABLE = pd.DataFrame({"run": ["a", "b"], "setup": ["nano", "nano"]})
RECORDS = Records(TABLE, pd.DataFrame(), pd.DataFrame(), ())


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Path]:
    """Loads a plugin whose figure does `body`."""

    def write(body: str) -> Path:
        path = tmp_path / "figure.py"
        path.write_text(PLUGIN.format(body=body))
        load_plugins([path])
        return path

    return write


def test_a_figure_is_found_by_its_names_and_drawn(load: Callable[[str], Path]) -> None:
    load("return Drawing(Figure(), table)")
    assert list(FIGURES)[-1] == "mine"
    assert find_figure("my-alias") is find_figure("mine")
    drawing = find_figure("mine").drawing(RECORDS, TABLE)
    assert isinstance(drawing, Drawing)
    assert drawing.numbers["run"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return None", "draw answers a NoneType, a Drawing is expected."),
        ("return table['x']", "failed: line 9: KeyError: 'x'. Correct the plugin."),
    ],
)
def test_a_figure_that_fails_is_named(body: str, reason: str, load: Callable[[str], Path]) -> None:
    path = load(body)
    with pytest.raises(EcditError) as refusal:
        find_figure("mine").drawing(RECORDS, TABLE)
    assert str(refusal.value).startswith(f"plugin {path}: figure 'mine'")
    assert str(refusal.value).endswith(reason)
    assert refusal.value.exit_code == 2
