"""Training on prepared latents as a user does: exact on resume, the same on two processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.records.run_folder import RunDir
from tests.training_runs import final_checkpoint, numbers, start_run, wait_for_rows
from tests.two_nodes import train_on_two

pytestmark = [pytest.mark.slow, pytest.mark.multi]


@pytest.fixture(scope="module")
def settings(latent_set: Path) -> tuple[str, ...]:
    return ("data.name=latents", f"data.path={latent_set}", "eval.images=4", "eval.batch_images=4")


@pytest.fixture(scope="module")
def trained(train: Any, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("latents-run") / "run"
    done = train(folder, *settings)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_loss_falls_and_the_record_names_the_data_set(trained: Path, latent_set: Path) -> None:
    losses = [row["loss"] for row in numbers(trained)["steps.jsonl"]]
    assert losses[-1] < losses[0]
    config = RunDir(trained).read_run().config
    assert config["data"]["fingerprint"] in (latent_set / "index.json").read_text()


def test_a_killed_run_ends_with_the_same_bits_also_from_a_moved_data_set(
    trained: Path, settings: tuple[str, ...], latent_set: Path, train: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start_run(folder, *settings)
    wait_for_rows(folder, 3, process)
    process.kill()
    process.communicate(timeout=60)
    moved = shutil.copytree(latent_set, tmp_path / "moved")
    again = train(folder, *settings, f"data.path={moved}")
    assert again.returncode == 0, again.stderr
    assert numbers(folder) == numbers(trained)
    assert final_checkpoint(folder) == final_checkpoint(trained)


def test_two_processes_give_the_losses_of_one(trained: Path, settings: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_on_two(folder, *settings)
    here, there = ([row["loss"] for row in numbers(run)["steps.jsonl"]] for run in (folder, trained))
    assert here == pytest.approx(there, rel=2e-5)
