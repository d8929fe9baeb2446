"""A checkpoint is complete or invisible, and a damaged one is passed over and said."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from experiments.errors import CheckpointError, StorageError
from experiments.records.layout import RunDir
from experiments.training import checkpoint
from experiments.training.checkpoint import complete_checkpoints, load_newest, write_checkpoint

FILES = ("weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def write(run_dir: RunDir, images_seen: int, keep: int = 2, size: int = 8) -> Path:
    tensors = {
        name: {"layer.weight": torch.full((size,), float(images_seen + place))}
        for place, name in enumerate(checkpoint.TENSOR_FILES)
    }
    return write_checkpoint(run_dir, "abc", {"images_seen": images_seen, "loss_sum": 1 / 3}, tensors, keep)


def load(run_dir: RunDir) -> tuple[int | None, list[str]]:
    """Images of what was found, and what was said."""
    said: list[str] = []
    found = load_newest(run_dir, "abc", said.append)
    return None if found is None else found.state["images_seen"], said


def kept(run_dir: RunDir) -> list[int]:
    return [int(path.name.removeprefix("images_")) for path in complete_checkpoints(run_dir)]


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """What a full disk is to the one who writes: the same call fails in the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_read_is_what_was_written(run_dir: RunDir) -> None:
    write(run_dir, 100)
    found = load_newest(run_dir, "abc", say=pytest.fail)
    assert found is not None
    assert found.state == {"images_seen": 100, "loss_sum": 1 / 3, "config_id": "abc"}
    assert {name: group["layer.weight"][0].item() for name, group in found.tensors.items()} == {
        "weights": 100.0,
        "ema": 101.0,
        "optimizer": 102.0,
    }


def test_without_any_there_is_none(run_dir: RunDir) -> None:
    assert load(run_dir) == (None, [])


def test_only_the_files_that_are_asked_for_are_read(run_dir: RunDir) -> None:
    (write(run_dir, 100) / "optimizer.safetensors").unlink()
    found = load_newest(run_dir, "abc", say=pytest.fail, files=["ema"])
    assert found is not None
    assert list(found.tensors) == ["ema"]


def test_the_newest_few_are_kept(run_dir: RunDir) -> None:
    for images in (8, 90, 100, 1000):
        write(run_dir, images, keep=2)
    assert kept(run_dir) == [100, 1000]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damage_to_any_file_is_said_and_the_one_before_is_used(run_dir: RunDir, file: str, damage: str) -> None:
    write(run_dir, 100)
    damaged = write(run_dir, 200) / file
    content = damaged.read_bytes()
    if damage == "flip":
        middle = len(content) // 2
        damaged.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "gone":
        damaged.unlink()
    else:
        damaged.write_bytes(content[:-1] if damage == "cut" else b"")
    images, said = load(run_dir)
    assert images == 100
    assert len(said) == 1
    assert str(damaged) in said[0]
    assert said[0].endswith("Trying the checkpoint before it.")


def test_every_bit_of_the_state_counts(run_dir: RunDir) -> None:
    write(run_dir, 100)
    state = write(run_dir, 200) / "state.json"
    content = state.read_bytes()
    for place in range(len(content)):
        state.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        assert load(run_dir)[0] == 100, content[place - 20 : place + 20]


@pytest.mark.parametrize("content", ["null", "[]", '{"state": {}}', "not json"])
def test_a_state_that_is_something_else_is_damage(run_dir: RunDir, content: str) -> None:
    write(run_dir, 100)
    (write(run_dir, 200) / "state.json").write_text(content)
    assert load(run_dir)[0] == 100


def test_when_all_are_damaged_nothing_is_lost_silently(run_dir: RunDir) -> None:
    for images in (100, 200):
        (write(run_dir, images) / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"Every checkpoint in .* is damaged\. Delete that folder to start"):
        load(run_dir)
    assert kept(run_dir) == [100, 200]


def test_one_of_another_config_is_refused(run_dir: RunDir) -> None:
    write(run_dir, 100)
    with pytest.raises(CheckpointError, match=r"belongs to config abc, not def\. Use another --run-dir"):
        load_newest(run_dir, "def", say=pytest.fail)


def test_one_of_another_format_is_refused_and_not_called_damaged(run_dir: RunDir, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    write(run_dir, 100)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"has format 2, this ecdit reads 1\. Use the version of ecdit"):
        load(run_dir)


@pytest.mark.parametrize("num_files", [0, 1, 2, 3])
def test_a_process_that_dies_while_writing_leaves_the_one_before(run_dir: RunDir, num_files: int, monkeypatch) -> None:
    """The death comes before tensor file `num_files`, or before the whole is given its name."""
    write(run_dir, 100)
    written: list[Path] = []
    original = checkpoint.save_file

    def dies(tensors, path: Path) -> None:
        if len(written) == num_files:
            raise KeyboardInterrupt
        original(tensors, path)
        written.append(path)

    monkeypatch.setattr(checkpoint, "save_file", dies)
    monkeypatch.setattr(Path, "rename", lambda path, target: dies({}, target))
    with pytest.raises(KeyboardInterrupt):
        write(run_dir, 200)
    monkeypatch.undo()
    assert len(written) == num_files
    assert load(run_dir) == (100, [])
    write(run_dir, 200)
    assert load(run_dir) == (200, [])
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["images_000000000100", "images_000000000200"]


def test_a_full_disk_is_one_line_and_leaves_the_one_before_and_nothing_else(run_dir: RunDir) -> None:
    write(run_dir, 100)
    line = r"cannot write the checkpoint .*images_000000000200: .*\. Free space and run the same command again: it cont"
    with files_no_larger_than(100_000), pytest.raises(StorageError, match=line) as caught:
        write(run_dir, 200, size=1_000_000)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert [path.name for path in run_dir.checkpoints.iterdir()] == ["images_000000000100"]
    write(run_dir, 200, size=1_000_000)
    assert load(run_dir) == (200, [])


def test_going_on_before_a_damaged_one_never_gives_up_a_whole_one(run_dir: RunDir) -> None:
    """Training went on from 100 because 300 is damaged, and saves at 200: 300 must not count as one that is kept."""
    write(run_dir, 100, keep=1)
    shutil.copytree(write(run_dir, 300, keep=2), run_dir.checkpoints / "images_000000000400")
    for images in (300, 400):
        (run_dir.checkpoints / f"images_{images:012d}" / "ema.safetensors").unlink()
    assert load(run_dir)[0] == 100
    write(run_dir, 200, keep=1)
    assert kept(run_dir) == [200]
    assert load(run_dir) == (200, [])


def test_a_damaged_one_of_the_same_images_is_replaced(run_dir: RunDir) -> None:
    (write(run_dir, 100) / "ema.safetensors").unlink()
    write(run_dir, 100)
    assert load(run_dir) == (100, [])


def test_a_state_keeps_every_bit_of_a_float(run_dir: RunDir) -> None:
    state = json.loads((write(run_dir, 100) / "state.json").read_text())["state"]
    assert state["loss_sum"] == 1 / 3
