"""The notebook on sampling: its cells are run in their order on a run of the command that it names, made shorter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.evaluation.pipeline import PipelineOutput
from tests.training_runs import TINY, start_run

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "sample-and-draw.ipynb"
CONTENT: dict[str, Any] = json.loads(NOTEBOOK.read_text())


def sources(kind: str) -> dict[str, str]:
    """The text of the cells of this kind, by their id."""
    return {cell["id"]: "".join(cell["source"]) for cell in CONTENT["cells"] if cell["cell_type"] == kind}


def test_it_is_a_notebook_without_outputs() -> None:
    assert (CONTENT["nbformat"], CONTENT["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in CONTENT["cells"]}) == len(CONTENT["cells"])
    for cell in CONTENT["cells"]:
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.multi
@pytest.mark.slow
def test_it_loads_samples_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = re.findall(r"^ecdit train (.*) --run-dir (\S+)$", "\n".join(sources("markdown").values()), flags=re.M)
    settings, folder = command
    forked = start_run(tmp_path / folder, *TINY, *settings.split(), "model.num_layers=2", "data.image_size=16")
    _, stderr = forked.communicate(timeout=180)
    assert forked.poll() == 0, stderr
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    for name, text in sources("code").items():
        *before, last = text.rstrip().splitlines()
        is_shown = re.match(r"draw_\w+\(", last) is not None
        exec(compile("\n".join(before if is_shown else [*before, last]), name, "exec"), names)
        if is_shown:
            shown[name] = eval(compile(last, name, "eval"), names)
    made = names["made"]
    assert isinstance(made, PipelineOutput)
    assert len(made.images) == len(names["prompts"]) == len(made.compute_map.captions)
    assert [type(each) for each in shown.values()] == [Figure, Figure]
    printed = capsys.readouterr().out
    assert printed.count(" experts per token, from ") == len(names["prompts"])
