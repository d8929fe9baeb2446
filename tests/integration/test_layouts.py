"""More than one process, and the mirror, through the same command. Layouts of one: `unit/training/test_loop.py`."""

import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from experiments.config.memory import memory
from experiments.config.schema import RunConfig
from experiments.records.run_folder import RunDir
from tests.training_runs import environment, losses, numbers, start, train_command, wait_for_rows
from tests.two_nodes import start_ranks, start_together, train_on_two

pytestmark = [pytest.mark.slow, pytest.mark.multi]


WITH_TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launched(folder, *settings):
    """The same run over two processes, as a user starts it."""
    return [*WITH_TWO, *train_command(folder, *settings)[1:]]


def test_two_processes_give_the_losses_of_one(undisturbed, tmp_path):
    folder = tmp_path / "run"
    talk = train_on_two(folder)
    assert RunDir(folder).read_status().state == "done", talk
    assert RunDir(folder).read_run().world == 2
    assert [row["images_seen"] for row in numbers(folder)["steps.jsonl"]] == list(range(16, 193, 16))
    assert "FutureWarning" not in talk
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


def test_a_signal_to_the_launcher_saves_and_one_process_continues(train, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start(launched(folder))
    wait_for_rows(folder, 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, talk = process.communicate(timeout=120)
    assert "FutureWarning" not in talk
    assert RunDir(folder).read_run().world == 2
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


SAMPLED = (
    "eval.images=12",
    "eval.sample_images=2",
    "eval.sample_steps=2",
    "eval.metric_images=4",
    "routing.group_images=1",
)


def test_a_run_that_mirrors_its_images_takes_the_memory_that_a_sweep_plans(tmp_path):
    command = train_command(tmp_path / "run", "wandb.mode=offline", "eval.sample_images=2", "eval.sample_steps=2")
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "run")
    planned = memory(RunConfig.model_validate(run.read_run().config), on_accelerator=False).peak_gib
    assert run.read_status().peak_memory_gib == pytest.approx(planned, rel=0.1)


@pytest.fixture(scope="module")
def sampled_by_one(train, tmp_path_factory):
    """A run whose last batch of validation is smaller, and which samples while it trains."""
    folder = tmp_path_factory.mktemp("one") / "run"
    done = train(folder, *SAMPLED)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("layout", [("parallel.expert_parallel=2",), ("parallel.zero_stage=3",)], ids=lambda x: x[0])
def test_layers_that_need_all_processes_validate_and_sample_as_one_does(layout, sampled_by_one, tmp_path):
    """Three batches of two conditions for two processes, the last one of half the size; a preview; judged samples."""
    folder = tmp_path / "run"
    train_on_two(folder, *SAMPLED, *layout)
    assert losses(folder) == pytest.approx(losses(sampled_by_one), rel=2e-5)
    ours, theirs = (
        {(row["metric"], row["images_seen"], row["weights"]): row["value"] for row in numbers(run)["evals.jsonl"]}
        for run in (folder, sampled_by_one)
    )
    assert ours.keys() == theirs.keys()
    assert any(metric == "frechet-shapes" for metric, *_ in ours)
    assert ours == pytest.approx(theirs, rel=1e-3)
    for row, other in zip(numbers(folder)["routing.jsonl"], numbers(sampled_by_one)["routing.jsonl"], strict=True):
        assert row["experts_per_token"] == pytest.approx(other["experts_per_token"], abs=1e-3)
    assert {path.name for path in RunDir(folder).samples.iterdir()} == {
        path.name for path in RunDir(sampled_by_one).samples.iterdir()
    }


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Stops a run over two processes that share the experts after its fifth row. It is not to be changed."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    ranks = start_ranks(folder, "parallel.expert_parallel=2")
    wait_for_rows(folder, 5, ranks.processes[0])
    for rank in ranks.processes:
        rank.send_signal(signal.SIGTERM)
    ranks.ends()
    assert RunDir(folder).read_status().state == "interrupted"
    return folder


def test_a_run_on_shared_experts_goes_on_with_one_process_and_names_a_damaged_shard(
    train, undisturbed, interrupted, tmp_path
):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    newest = max(RunDir(folder).checkpoints.glob("images_*"))
    shards = sorted(path.name for path in newest.glob("weights-*"))
    assert shards == ["weights-00001-of-00002.safetensors", "weights-00002-of-00002.safetensors"]
    (newest / shards[1]).unlink()
    again = train(folder, options=())
    assert again.returncode == 0, again.stderr
    assert "weights-00002-of-00002.safetensors is damaged" in again.stderr
    assert "Trying the checkpoint before it." in again.stderr
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


def test_two_processes_pass_over_a_shard_that_only_one_of_them_reads(undisturbed, interrupted, tmp_path):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    newest = max(RunDir(folder).checkpoints.glob("images_*"))
    damaged = newest / "optimizer-00002-of-00002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    talk = train_on_two(folder, "parallel.expert_parallel=2", options=())
    assert talk.count(f"{damaged.name} is damaged") == 1
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


def test_a_number_that_is_not_finite_is_named_where_layers_need_all_processes(tmp_path):
    """Nobody waits for the process whose experts overflowed."""
    folder = tmp_path / "run"
    diverges = ("optim.learning_rate=1e3", "optim.weight_decay=1e3", "optim.warmup_images=0")
    ended = start_ranks(folder, "parallel.expert_parallel=2", *diverges).ends()
    assert all(code != 0 for code, _ in ended)
    status = RunDir(folder).read_status()
    assert status.state == "failed"
    assert status.reason.startswith("Not finite after")


def test_a_validation_loss_that_is_not_finite_is_searched_by_processes_with_unequal_numbers_of_batches(tmp_path):
    """Of three batches one process has two and the other one; neither waits for the other at the end of its own."""
    ended = start_together("tests.integration.search_worker:main", str(tmp_path), world=2).ends()
    assert [code for code, _ in ended] == [0, 0], ended
    line = "Not finite after 8 images: the loss (validation loss of the raw weights)."
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [line, line]


def test_accumulation_checkpointing_and_shared_experts_together_change_no_loss(undisturbed, tmp_path):
    folder = tmp_path / "run"
    layout = ("parallel.expert_parallel=2", "parallel.zero_stage=2", "parallel.activation_checkpointing=True")
    train_on_two(folder, *layout, "train.accumulation=2")
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)
