"""Processes, accumulation, ZeRO stages, optimizers and precisions, through the same command."""

import os
import signal
import subprocess
import sys

import pytest

from experiments.records.layout import RunDir
from tests.training_runs import environment, numbers, start, train_command, wait_for_rows

pytestmark = [pytest.mark.slow, pytest.mark.multi]


def launched(folder, *settings):
    """The same run over two processes."""
    command = train_command(folder, *settings)[1:]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]


def losses(folder):
    rows = numbers(folder)
    values = [row["loss"] for row in rows["steps.jsonl"]]
    return values + [row["value"] for row in rows["evals.jsonl"] if row["metric"].startswith("val_loss")]


def test_two_processes_give_the_losses_of_one(undisturbed, tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(launched(folder), capture_output=True, text=True, env=environment(), timeout=180, check=False)
    assert RunDir(folder).read_status().state == "done", done.stderr
    assert RunDir(folder).read_run().world == 2
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


def test_a_signal_to_the_launcher_saves_and_one_process_continues(train, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start(launched(folder))
    wait_for_rows(folder, 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert RunDir(folder).read_status().state == "interrupted"
    again = train(folder)
    assert again.returncode == 0, again.stderr
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


@pytest.mark.parametrize("setting", ["train.accumulation=2", "parallel.zero_stage=2"])
def test_the_layout_of_a_step_does_not_change_the_losses(train, undisturbed, tmp_path, setting):
    done = train(tmp_path / "run", setting)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), rel=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        ("optim.name=rmsprop", "optim.learning_rate=1e-4"),
        ("train.precision=bf16",),
        ("train.mask_ratio=0.5",),
        ("routing=token_choice",),
        ("routing=switch",),
        ("routing=shared_expert",),
        ("routing=dense",),
    ],
    ids=lambda settings: settings[0],
)
def test_every_kind_of_run_learns(train, tmp_path, settings):
    done = train(tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    steps = numbers(tmp_path / "run")["steps.jsonl"]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_without_an_account_wandb_is_offline_and_may_be_deleted(train, undisturbed, tmp_path):
    done = train(tmp_path / "run", "wandb.mode=offline")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert numbers(tmp_path / "run") == numbers(undisturbed)
