"""More than one process, and the mirror, through the same command. Layouts of one: `unit/training/test_loop.py`."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from experiments.records.layout import RunDir
from tests.training_runs import environment, losses, numbers, start, train_command, wait_for_rows

pytestmark = [pytest.mark.slow, pytest.mark.multi]


def launched(folder, *settings):
    """The same run over two processes."""
    command = train_command(folder, *settings)[1:]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]


def test_two_processes_give_the_losses_of_one(undisturbed, tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(launched(folder), capture_output=True, text=True, env=environment(), timeout=180, check=False)
    assert RunDir(folder).read_status().state == "done", done.stderr
    assert RunDir(folder).read_run().world == 2
    assert [row["images_seen"] for row in numbers(folder)["steps.jsonl"]] == list(range(16, 193, 16))
    assert "FutureWarning" not in done.stderr
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


def test_a_process_that_is_killed_fails_the_run_and_is_named(tmp_path):
    folder = tmp_path / "run"
    process = start(launched(folder, "train.images=9600"))
    wait_for_rows(folder, 3, process)
    main = RunDir(folder).read_status().pid
    workers = psutil.Process(process.pid).children()
    next(worker for worker in workers if worker.pid != main).kill()
    _, talk = process.communicate(timeout=120)
    status = RunDir(folder).read_status()
    assert status.state == "failed"
    assert status.reason.startswith("Another process of this run has ended. If it said nothing, look for its memory")
    assert "[rank0]: Traceback" not in talk


def test_without_an_account_wandb_is_offline_and_may_be_deleted(train, undisturbed, tmp_path):
    done = train(tmp_path / "run", "wandb.mode=offline")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert numbers(tmp_path / "run") == numbers(undisturbed)
