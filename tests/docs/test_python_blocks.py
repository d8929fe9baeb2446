"""The page on publishing weights: its Python is run as it stands, on weights that its first command exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from analysis.model_card import READER
from ecdit_cli.app import run
from experiments.evaluation.sampling.load_run import load_run
from experiments.models.dit import DiT
from experiments.records.run_folder import RunDir
from tests.docs.pages import DOCS, blocks
from tests.training_runs import random_run_folder

WITH_ECDIT, WITHOUT = [
    block.text for block in blocks(DOCS / "how-to" / "publish-weights.md") if block.language == "python"
]
MOST_LINES = 10


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random_run_folder(Path("out/runs/first"), "routing=expert_choice", "data.image_size=16")
    assert run(["export-weights", "out/runs/first", "out/first-weights", "--shard-gib", "0.001"]) == 0
    assert len(list(Path("out/first-weights").glob("*.safetensors"))) > 1
    return Path("out/first-weights")


def executed(code: str) -> dict[str, Any]:
    """The names that the code leaves behind."""
    names: dict[str, Any] = {}
    exec(compile(code, "page", "exec"), names)
    return names


def test_ecdit_gives_the_model_and_its_images(weights: Path) -> None:
    names = executed(WITH_ECDIT)
    assert isinstance(names["model"], DiT)
    with Image.open("circle.png") as picture:
        assert picture.size == (16, 16)


def test_ten_lines_without_ecdit_read_every_parameter(weights: Path) -> None:
    description, tensors = executed(WITHOUT)["read_weights"](weights)
    expected = load_run(RunDir(weights), None, pytest.fail).model
    assert all(torch.equal(tensors[name], parameter) for name, parameter in expected.named_parameters())
    assert len(tensors) == len(list(expected.parameters()))
    assert description["record"]["config"]["routing"]["name"] == "expert_choice"


def test_they_are_those_of_the_card_and_import_nothing_of_ecdit() -> None:
    assert WITHOUT == READER
    assert len([line for line in READER.splitlines() if line]) <= MOST_LINES
    assert "experiments" not in READER
