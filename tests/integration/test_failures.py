"""What goes wrong is one clear line with the way out, and nothing is lost."""

import json
import re
import resource
import subprocess
import time
from contextlib import suppress

import pytest

from experiments.records.run_folder import RunDir
from tests.training_runs import environment, final_checkpoint, numbers, small_file_system, start_run, train_command

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
    process = train(tmp_path / "run", "optim.learning_rate=1e3", "optim.weight_decay=1e3", "optim.warmup_images=0")
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
    assert_one_line(train(tmp_path / "file" / "run"), 1, "cannot write", "choose another folder")


def test_another_number_of_processes_than_launched_is_said(train, tmp_path):
    assert_one_line(
        train(tmp_path / "run", "parallel.world=2"), 2, "parallel.world=2", "torchrun --standalone --nproc-per-node 2"
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, 64 MiB large: four checkpoints and more."""
    with small_file_system(tmp_path, mebibytes=64) as folder:
        yield folder


def fill(folder):
    """Take all that is left."""
    with (folder / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(1 << 16))


def test_on_a_full_disk_nothing_is_lost_and_the_same_command_continues(train, undisturbed, small_disk):
    """The disk fills up once there is a checkpoint to lose."""
    folder = small_disk / "run"
    process = start_run(folder)
    while not list(RunDir(folder).checkpoints.glob("images_*")):
        assert process.poll() is None
        time.sleep(0.01)
    fill(small_disk)
    _, talk = process.communicate(timeout=120)
    full = subprocess.CompletedProcess([], process.returncode, "", talk)
    assert_one_line(full, 1, "cannot write", "no space left on device", "run the same command again")
    (small_disk / "ballast").unlink()
    again = train(folder)
    assert again.returncode == 0, again.stderr
    assert numbers(folder) == numbers(undisturbed)
    assert final_checkpoint(folder) == final_checkpoint(undisturbed)


def test_a_checkpoint_that_does_not_fit_fails_the_run_and_leaves_no_half_of_it(train, undisturbed, tmp_path):
    folder = tmp_path / "run"
    largest = max(path.stat().st_size for path in undisturbed.rglob("optimizer.safetensors"))
    process = start_run(folder)  # which writes no such file in its first second
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest - 1, largest - 1))
    _, talk = process.communicate(timeout=120)
    full = subprocess.CompletedProcess([], process.returncode, "", talk)
    assert_one_line(full, 1, "cannot write the checkpoint", "run the same command again")
    assert RunDir(folder).read_status().state == "failed"
    assert list(RunDir(folder).checkpoints.iterdir()) == []
    again = train(folder)
    assert again.returncode == 0, again.stderr
    assert RunDir(folder).read_status().state == "done"


def test_stdout_is_the_result_alone_and_stderr_only_what_we_say(train, tmp_path):
    """Warnings that a user did not ask for would show: they are on, as under `python -W always`."""
    folder = tmp_path / "run"
    command = train_command(folder, "train.images=16", options=("--json",))
    process = subprocess.run(
        command, capture_output=True, text=True, env={**environment(), "PYTHONWARNINGS": "always"}, timeout=180,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["images_seen"] == 16
    first, last = process.stderr.splitlines()
    assert first == "nano expert_choice, 16 images: importing torch"
    assert re.fullmatch(r"training: 16/16 images, loss \d\.\d{4}, \d+ images/s", last)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.imges=16", "'train.imges' is not a setting. Did you mean 'train.images'"),
        ("model=nanno", "model.name='nanno' is not a preset. Did you mean 'nano'?"),
        ("train.images=many", "train.images"),
        ("routing.num_experts=4096", "routing.capacity_factor=2 leaves an expert without a slot"),
        ("model.num_heads=3", "model.num_heads=3"),
    ],
)
def test_a_setting_that_does_not_work_is_said_before_torch_is_imported(train, tmp_path, setting, words):
    process = train(tmp_path / "run", setting, options=())
    assert_one_line(process, 2, words)
    assert process.stderr.splitlines()[0].startswith("error:")
    assert not (tmp_path / "run").exists()
