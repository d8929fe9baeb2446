"""`ecdit data`: by hand, as a process that is killed, and on what is damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ecdit_cli.app import run
from experiments.data.prepare.job import prepare
from tests.real_images import IMAGE_SIZE, MAX_TOKENS, small_request, write_sidecars
from tests.training_runs import environment, random_run_folder, start

STARTING_SECONDS = 400
"""Three processes import torch, datasets, diffusers and transformers: 20 s, and much more on a machine that is busy."""


def arguments(source: Path, out: Path, encoders: dict[str, str], *more: str) -> list[str]:
    models = [word for name, folder in encoders.items() for word in (f"--{name}", folder)]
    sizes = ["--image-size", IMAGE_SIZE, "--max-tokens", MAX_TOKENS, "--shard-images", 8, "--batch-images", 3]
    return ["data", "prepare", str(source), str(out), *models, *map(str, sizes), *more]


def test_prepare_prints_what_it_made_and_says_what_it_left_out(
    encoder_folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_sidecars(tmp_path / "source", 10), tmp_path / "set"
    (source / "002.png").write_bytes(b"broken")
    assert run([*arguments(source, out, encoder_folders), "--json"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert (made["train_images"] + made["validation_images"], made["left_out"]) == (9, 1)
    assert made["latents"] == "4 x 16 x 16"
    assert f"Left out 1 of 10 images: see {out / 'left_out.jsonl'}" in captured.err.replace("\n", " ")
    assert "  002.png: not a file of an image\n" in captured.err
    assert run(arguments(source, out, encoder_folders)) == 0
    captured = capsys.readouterr()
    assert made["fingerprint"] in captured.out
    assert f"Finished already, nothing to do: {out}" in captured.err
    assert "This set stays as it is: name another folder to use images that were mended.\n" in captured.err


def test_what_was_left_out_is_listed_to_a_bound_and_counted(
    encoder_folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_sidecars(tmp_path / "source", 12), tmp_path / "set"
    for number in range(9):
        (source / f"00{number}.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert run([*arguments(source, out, encoder_folders), "--json"]) == 0
    error = capsys.readouterr().err
    assert "Left out 9 of 12 images" in error
    assert error.count(": its text is not UTF-8\n") == 5
    assert len((out / "left_out.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("option", "most"),
    [
        ("--image-size", 4096),
        ("--max-tokens", 4096),
        ("--validation-images", 10**9),
        ("--shard-images", 2**20),
        ("--batch-images", 4096),
        ("--processes", 256),
    ],
)
def test_numbers_have_bounds_that_are_said(
    option: str, most: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [word for name in ("vae", "t5", "clip") for word in (f"--{name}", "x")]
    for value in (most + 1, 10**30):
        assert run(["data", "prepare", str(tmp_path), str(tmp_path / "set"), *models, option, str(value)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: Invalid value for '{option}': Input should be less than or equal to {most}")
        assert error.count("\n") == 1


@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "-inf"])
def test_sizes_in_gib_are_finite(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["bench", "data", "--gib"], ["export-weights", str(tmp_path), str(tmp_path / "x"), "--shard-gib"]):
        assert run([*words, value]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: Invalid value for '{words[-1]}': Input should be ")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    "ranks",
    [{"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": ""}],
    ids=lambda ranks: str(ranks),
)
def test_prepare_makes_the_files_of_processes_that_never_came(
    ranks: dict[str, str],
    encoder_folders: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("experiments.data.prepare.job.PATIENCE_SECONDS", 0.1)
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    source, out = write_sidecars(tmp_path / "source", 20), tmp_path / "set"
    assert run([*arguments(source, out, encoder_folders), "--json"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert made["train_images"] + made["validation_images"] == 20
    assert ("No other process has made a file" in captured.err) == (ranks.get("WORLD_SIZE") == "2")


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data"]) == 0
    captured = capsys.readouterr()
    assert "prepare" in captured.out
    assert not captured.err


def test_out_that_is_a_file_or_holds_another_set_is_one_line(
    latent_set: Path, encoder_folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_sidecars(tmp_path / "source", 4), tmp_path / "file"
    out.touch()
    assert run(arguments(source, out, encoder_folders)) == 2
    assert f"error: {out} is a file. Name a folder" in capsys.readouterr().err
    copy = shutil.copytree(latent_set, tmp_path / "set")
    assert run(arguments(source, copy, encoder_folders)) == 2
    error = capsys.readouterr().err
    assert f"error: {copy} was begun with another" in error
    assert "Use the same to continue it, or name another folder." in error


def test_check_finds_one_changed_bit(latent_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(latent_set, tmp_path / "set")
    assert run(["data", "check", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "whole"
    shard = copy / "train-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert run(["data", "check", str(copy)]) == 2
    assert f"error: the shard {shard} is damaged: its checksum is another one." in capsys.readouterr().err


def test_a_library_that_is_missing_is_one_line_with_the_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['datasets'] = None; from ecdit_cli.app import run; sys.exit(run(sys.argv[1:]))"
    words = arguments(tmp_path, tmp_path / "set", dict.fromkeys(("vae", "t5", "clip"), "x"))
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: cannot import datasets: there is no module 'datasets'. Install what it needs with: pip install "
        "'ecdit[data]'."
    )


def test_another_data_set_or_a_damaged_one_ends_before_any_step(
    latent_set: Path, encoder_folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = small_request(latent_set.parent / "source", encoder_folders, validation_images=5)
    other = prepare(request, tmp_path / "other").index
    settings = ["data.name=latents", f"data.path={latent_set}"]
    trained = random_run_folder(tmp_path / "trained", *settings)
    mine = trained.read_run().config["data"]["fingerprint"]
    same = ["model=nano", "model.num_layers=2", "train.precision=fp32", "eval.sample_steps=2", *settings]
    on_other = ["train", *same, f"data.path={tmp_path / 'other'}", "--no-progress", "--run-dir"]
    assert run([*on_other, str(trained.path)]) == 2
    message = f"{trained.path} holds another run: data.fingerprint is {mine} there and {other.fingerprint} here."
    assert message in capsys.readouterr().err
    (tmp_path / "other" / "train-00000.safetensors").unlink()
    assert run([*on_other, str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: the data set lacks its shard {tmp_path / 'other' / 'train-00000.safetensors'}. Run"
    )
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_set_that_is_too_small_for_a_batch_ends_before_any_step(
    latent_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["data.name=latents", f"data.path={latent_set}", "train.batch_images=64"]
    assert run(["train", "model=nano", *settings, "--no-progress", "--run-dir", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == (
        f"error: train.batch_images=64 is more than the 36 training images of {latent_set}. "
        "Use train.batch_images=36 or fewer, or prepare more images.\n"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.timeout(3 * STARTING_SECONDS)
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_two_processes_killed_and_started_again_make_the_same_files(
    launcher: str, latent_set: Path, encoder_folders: dict[str, str], tmp_path: Path
) -> None:
    source, out = latent_set.parent / "source", tmp_path / "set"
    more = ("--validation-images", "4", "--json", *(("--processes", "2") if launcher == "own" else ()))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if launcher == "torchrun" else []
    command = [sys.executable, *launch, "-m", "ecdit_cli", *arguments(source, out, encoder_folders, *more)]
    process = start(command)
    deadline = time.monotonic() + STARTING_SECONDS
    try:
        while len(list(out.glob("*.safetensors"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no files"
            time.sleep(0.01)
    except AssertionError:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=STARTING_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train_images"] == 36  # printed once
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in latent_set.iterdir()
    }
