"""A finished tiny run for all integration tests, and how to make another."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training_runs import TIMEOUT_SECONDS, start_run

Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def train() -> Train:
    """Runs `ecdit train` to its end and returns the finished process."""

    def run(folder: Path, *settings: str, options: Sequence[str] = ("--no-progress",)) -> Any:
        forked = start_run(folder, *settings, options=options)
        stdout, stderr = forked.communicate(timeout=TIMEOUT_SECONDS)
        return subprocess.CompletedProcess([], forked.poll(), stdout, stderr)

    return run


@pytest.fixture(scope="session")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny expert-choice run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = train(folder)
    assert done.returncode == 0, done.stderr
    return folder
