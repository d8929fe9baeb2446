"""The same command continues a run, and the numbers do not know that it stopped."""

import json
import os
import signal
import sys

import pytest

from experiments.config.blocks import BLOCKS, DEFAULT_BLOCK
from experiments.records.run_folder import RunDir
from tests.training_runs import final_checkpoint, numbers, start, start_run, train_command, wait_for_rows

pytestmark = [pytest.mark.slow, pytest.mark.multi]


def stop_and_continue(train, folder, number, settings=()):
    """Interrupt a run after its third row, then run the same command to the end; the status in between."""
    process = start_run(folder, *settings)
    wait_for_rows(folder, 3, process)
    os.kill(process.pid, number)
    process.communicate(timeout=120)
    status = RunDir(folder).read_status()
    again = train(folder, *settings)
    assert again.returncode == 0, again.stderr
    return process.returncode, status, again


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_ends_with_the_same_bits_as_an_undisturbed_one(train, undisturbed, tmp_path, number):
    folder = tmp_path / "run"
    exit_code, status, _ = stop_and_continue(train, folder, number)
    if number == signal.SIGKILL:
        assert (exit_code, status.state) == (-signal.SIGKILL, "running")
    else:
        assert (exit_code, status.state, status.reason) == (130, "interrupted", signal.Signals(number).name)
    assert numbers(folder) == numbers(undisturbed)
    assert final_checkpoint(folder) == final_checkpoint(undisturbed)


@pytest.mark.parametrize("flow", ["prediction=x0", "objective=ddpm flow.learned_sigma=True", "objective=edm"])
def test_a_run_of_any_objective_continues_with_the_same_bits(train, tmp_path, flow):
    settings = ["routing=dense", "train.images=96", "train.mask_ratio=0.5", *f"flow.{flow}".split()]
    assert train(tmp_path / "alone", *settings).returncode == 0
    stop_and_continue(train, tmp_path / "run", signal.SIGTERM, settings)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "alone")
    assert final_checkpoint(tmp_path / "run") == final_checkpoint(tmp_path / "alone")


OTHER_MODELS = [f"model.block={name}" for name in BLOCKS if name != DEFAULT_BLOCK] + ["model.positions=rope"]


@pytest.mark.parametrize("model", OTHER_MODELS)
def test_a_run_with_any_block_continues_with_the_same_bits(train, tmp_path, model):
    settings = [model, "routing.name=loss_free", "train.images=96", "train.mask_ratio=0.5"]
    assert train(tmp_path / "alone", *settings).returncode == 0
    stop_and_continue(train, tmp_path / "run", signal.SIGKILL, settings)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "alone")
    assert final_checkpoint(tmp_path / "run") == final_checkpoint(tmp_path / "alone")


def test_a_damaged_checkpoint_is_passed_over_and_said(train, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start_run(folder)
    wait_for_rows(folder, 5, process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    newest = max(RunDir(folder).checkpoints.glob("images_*")) / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = train(folder, options=())
    assert again.returncode == 0, again.stderr
    assert "optimizer.safetensors is damaged" in again.stderr
    assert numbers(folder) == numbers(undisturbed)


def test_a_finished_run_is_left_alone_without_importing_torch(train, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    again = train(undisturbed, options=("--json",))
    assert again.returncode == 0
    assert "left alone" in again.stderr
    assert json.loads(again.stdout)["state"] == "done"
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    code = "import sys; from ecdit_cli.app import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    process = start([sys.executable, "-c", code, *train_command(undisturbed)[3:]])
    process.communicate(timeout=60)
    assert process.returncode == 0
