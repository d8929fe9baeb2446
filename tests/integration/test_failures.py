"""What goes wrong is one clear line with the way out, and nothing is lost."""

import json
import resource
import subprocess

import pytest

from experiments.records.layout import RunDir
from tests.training_runs import environment, train_command

pytestmark = pytest.mark.slow


def errors(process):
    return [line for line in process.stderr.splitlines() if line.startswith("error:")]


def assert_one_line(process, exit_code, *words):
    assert process.returncode == exit_code, process.stderr
    assert "Traceback" not in process.stderr
    assert len(errors(process)) == 1, process.stderr
    for word in words:
        assert word in errors(process)[0]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_layer(train, tmp_path):
    process = train(tmp_path / "run", "optim.learning_rate=1e30", "optim.warmup_images=0")
    assert_one_line(process, 1, "Not finite", "optim.learning_rate")
    status = RunDir(tmp_path / "run").read_status()
    assert status.state == "failed"
    assert any(part in status.reason for part in ("blocks.", "head", "embed", "time", "text"))


def test_a_folder_of_another_config_is_refused_naming_the_setting(train, undisturbed):
    process = train(undisturbed, "seed=7")
    assert_one_line(process, 2, "seed is 0 there and 7 here", "--run-dir")


def test_a_damaged_run_json_is_said(train, undisturbed, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text((undisturbed / "run.json").read_text()[:200])
    assert_one_line(train(folder), 2, "run.json", "damaged")


def test_a_folder_that_cannot_be_made_is_said(train, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(train(tmp_path / "file" / "run"), 1, "cannot write", "choose another one")


def test_another_number_of_processes_than_launched_is_said(train, tmp_path):
    assert_one_line(train(tmp_path / "run", "parallel.world=2"), 2, "parallel.world=2", "torchrun --nproc-per-node 2")


def test_a_full_disk_keeps_the_last_checkpoint_and_the_same_command_continues(train, undisturbed, tmp_path):
    folder = tmp_path / "run"
    largest = max(path.stat().st_size for path in undisturbed.rglob("optimizer.safetensors"))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))

    full = subprocess.run(
        train_command(folder), capture_output=True, text=True, env=environment(), timeout=180, preexec_fn=limit,
        check=False,
    )  # fmt: skip
    assert_one_line(full, 1, "cannot write the checkpoint", "run the same command again")
    assert RunDir(folder).read_status().state == "failed"
    again = train(folder)
    assert again.returncode == 0, again.stderr
    assert RunDir(folder).read_status().state == "done"


def test_stdout_is_the_result_alone(train, tmp_path):
    process = train(tmp_path / "run", "train.images=16", options=("--json",))
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["images_seen"] == 16
