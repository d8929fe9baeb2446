"""A checkpoint is complete or invisible, and a damaged one is passed over and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.errors import CheckpointError, StorageError
from experiments.records.run_folder import RunDir
from experiments.training import checkpoint_files
from experiments.training.checkpoint import Checkpoint, DamagedCheckpointError, load_newest
from experiments.training.checkpoint_files import (
    Stretches,
    TrainingState,
    publish,
    write_checkpoint,
    write_shard,
)
from experiments.training.checkpoint_list import complete_checkpoints
from tests.training_runs import files_no_larger_than

FILES = ("weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def write(run_dir: RunDir, images_seen: int, keep: int = 2, size: int = 8) -> Path:
    tensors = {
        name: {"layer.weight": torch.full((size,), float(images_seen + place))}
        for place, name in enumerate(checkpoint_files.TENSOR_FILES)
    }
    return write_checkpoint(run_dir, "abc", {"images_seen": images_seen, "loss_sum": 1 / 3}, tensors, keep)


def load(run_dir: RunDir) -> tuple[int | None, list[str]]:
    """Images of what was found, and what was said."""
    said: list[str] = []
    found = load_newest(run_dir, "abc", said.append)
    return None if found is None else found.state["images_seen"], said


def kept(run_dir: RunDir) -> list[int]:
    return [int(path.name.removeprefix("images_")) for path in complete_checkpoints(run_dir)]


def test_what_is_read_is_what_was_written(run_dir: RunDir) -> None:
    write(run_dir, 100)
    found = load_newest(run_dir, "abc", say=pytest.fail)
    assert found is not None
    assert found.state == {"images_seen": 100, "loss_sum": 1 / 3, "config_id": "abc"}
    values = {name: found.full(name)["layer.weight"].tolist() for name in ("weights", "ema", "optimizer")}
    assert values == {"weights": [100.0] * 8, "ema": [101.0] * 8, "optimizer": [102.0] * 8}


def test_without_any_there_is_none(run_dir: RunDir) -> None:
    assert load(run_dir) == (None, [])


def test_only_the_files_that_are_asked_for_are_read(run_dir: RunDir) -> None:
    (write(run_dir, 100) / "optimizer.safetensors").unlink()
    found = load_newest(run_dir, "abc", say=pytest.fail, files=["ema"])
    assert found is not None
    assert found.full("ema")["layer.weight"][0] == 101


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


def test_the_bytes_of_a_damaged_state_are_not_printed(run_dir: RunDir) -> None:
    write(run_dir, 100)
    (write(run_dir, 200) / "state.json").write_bytes(b"\xff\x1b" * 5000)
    _, said = load(run_dir)
    assert "state.json is damaged (UnicodeDecodeError" in said[0]
    assert len(said[0]) < 500 + len(str(run_dir.path))


def test_when_all_are_damaged_nothing_is_lost_silently(run_dir: RunDir) -> None:
    for images in (100, 200):
        (write(run_dir, images) / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"Every checkpoint in .* is damaged\. Bring one back, or start anew"):
        load(run_dir)
    assert kept(run_dir) == [100, 200]


def test_one_of_another_config_is_refused(run_dir: RunDir) -> None:
    write(run_dir, 100)
    with pytest.raises(CheckpointError, match=r"belongs to config abc, not def\. Use another --run-dir"):
        load_newest(run_dir, "def", say=pytest.fail)


def test_one_of_another_format_is_refused_and_not_called_damaged(run_dir: RunDir, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint_files, "FORMAT_VERSION", 99)
    write(run_dir, 100)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"has format 99, this ecdit reads 3\. Use the version of ecdit"):
        load(run_dir)


@pytest.mark.parametrize("num_files", [0, 1, 2, 3])
def test_a_process_that_dies_while_writing_leaves_the_one_before(run_dir: RunDir, num_files: int, monkeypatch) -> None:
    """The death comes before tensor file `num_files`, or before the whole is given its name."""
    write(run_dir, 100)
    written: list[Path] = []
    original = checkpoint_files.save_file

    def dies(tensors, path: Path, **_: object) -> None:
        if len(written) == num_files:
            raise KeyboardInterrupt
        original(tensors, path)
        written.append(path)

    monkeypatch.setattr(checkpoint_files, "save_file", dies)
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
    for images in (300, 400):
        write(run_dir, images, keep=3)
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


SHAPES = {"whole": (4, 3), "split": (6, 5), "experts": (4, 2, 3)}
FULL = {name: torch.arange(float(torch.Size(shape).numel())).view(shape) for name, shape in SHAPES.items()}
SPLITS: list[Stretches] = [
    {"whole": (0, 12), "split": (0, 7), "experts": (0, 12)},
    {"split": (7, 8)},
    {"split": (8, 30), "experts": (12, 24)},
]


def in_shards(run_dir: RunDir) -> Checkpoint:
    """Three processes, of which each has something else."""
    run_dir.path.mkdir()
    reports = []
    for rank, stretches in enumerate(SPLITS):
        parts = {name: FULL[name].view(-1)[first:last] for name, (first, last) in stretches.items()}
        weights = {name: part.view(SHAPES[name]) if name == "whole" else part for name, part in parts.items()}
        moments = {f"{name}/exp_avg": -part for name, part in parts.items()}
        snapshot = TrainingState({"weights": weights, "ema": weights, "optimizer": moments}, stretches, {})
        reports.append(write_shard(run_dir, 100, snapshot, rank, world=3))
    publish(run_dir, {"config_id": "abc", "images_seen": 100}, SHAPES, reports, keep=1)
    found = load_newest(run_dir, "abc", say=pytest.fail)
    assert found is not None
    return found


def test_shards_are_one_checkpoint(run_dir: RunDir) -> None:
    found = in_shards(run_dir)
    assert found.shapes == SHAPES
    assert all(torch.equal(tensor, FULL[name]) for name, tensor in found.full("weights").items())


def test_every_stretch_can_be_read_from_every_split(run_dir: RunDir) -> None:
    found = in_shards(run_dir)
    for name, full in FULL.items():
        for start in range(full.numel()):
            for stop in range(start, full.numel() + 1):
                assert torch.equal(found.read("weights", name, start, stop), full.view(-1)[start:stop])
                assert torch.equal(found.read("optimizer", name, start, stop, "exp_avg"), -full.view(-1)[start:stop])


def test_a_process_checks_the_shards_that_it_reads_and_no_others(run_dir: RunDir) -> None:
    path = in_shards(run_dir).path
    (path / "weights-00003-of-00003.safetensors").unlink()
    first = load_newest(run_dir, "abc", say=pytest.fail, wanted={"whole": (0, 12), "split": (2, 8)})
    assert first is not None
    assert first.read("weights", "split", 2, 8).tolist() == [2, 3, 4, 5, 6, 7]
    said: list[str] = []
    with pytest.raises(CheckpointError, match="is damaged"):
        load_newest(run_dir, "abc", said.append, wanted={"split": (2, 9)})
    assert "weights-00003-of-00003.safetensors is damaged" in said[0]


def test_processes_pass_over_what_one_of_them_finds_damaged(run_dir: RunDir) -> None:
    write(run_dir, 100)
    write(run_dir, 200)
    others = iter([DamagedCheckpointError("Another process found damage."), None])
    said: list[str] = []
    found = load_newest(run_dir, "abc", said.append, agree=lambda mine: mine or next(others))
    assert found is not None
    assert found.state["images_seen"] == 100
    assert said == ["Another process found damage. Trying the checkpoint before it."]


def test_a_stretch_that_no_shard_has_is_a_bug_and_not_zeros(run_dir: RunDir) -> None:
    with pytest.raises(AssertionError, match="is not in"):
        in_shards(run_dir).read("weights", "split", 20, 31)
