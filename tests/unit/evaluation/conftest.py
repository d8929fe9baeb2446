"""A run of a small model with random weights, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.evaluation.sampling.load_run import LoadedRun, load_run
from tests.training_runs import random_run_folder


@pytest.fixture
def random_run(tmp_path: Path) -> Callable[..., LoadedRun]:
    """`random_run("routing=expert_choice", ...)`."""

    def make(*overrides: str) -> LoadedRun:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return load_run(random_run_folder(folder, *overrides), "ema", lambda line: None)

    return make
