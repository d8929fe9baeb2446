"""Saving in the background: one at a time, complete or invisible, and trouble is raised by all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from experiments.errors import StorageError
from experiments.records.run_folder import RunDir
from experiments.training import saver as saver_module
from experiments.training.checkpoint import load_newest
from experiments.training.checkpoint_files import TrainingState, write_shard
from experiments.training.checkpoint_list import complete_checkpoints
from experiments.training.saver import Saver
from tests.training_runs import files_no_larger_than


def a_snapshot(value: float = 1.0, size: int = 8) -> TrainingState:
    tensors = {"w": torch.full((size,), value)}
    moments = {"w/exp_avg": torch.zeros(size)}
    return TrainingState({"weights": tensors, "ema": tensors, "optimizer": moments}, {"w": (0, size)}, {"step": 3.0})


def a_saver(folder: Path, size: int = 8) -> Saver:
    return Saver(RunDir(folder), "abc", {"w": (size,)}, keep=1, rank=0, world=1)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that writes nothing until it is told to."""
    event = threading.Event()

    def slow(*arguments: object) -> object:
        assert event.wait(30)
        return write_shard(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saver_module, "write_shard", slow)
    return event


def test_it_returns_at_once_and_nothing_is_visible_until_all_is_written(gate: threading.Event, tmp_path: Path) -> None:
    saver, run_dir = a_saver(tmp_path), RunDir(tmp_path)
    saver.begin({"images_seen": 8}, a_snapshot())
    assert saver.is_writing
    saver.poll(anybody_writes=saver.is_writing)
    assert complete_checkpoints(run_dir) == []
    gate.set()
    saver.finish()
    assert not saver.is_writing
    found = load_newest(run_dir, "abc", say=pytest.fail)
    assert found is not None
    assert found.full("weights")["w"].tolist() == [1.0] * 8
    assert found.state == {
        "config_id": "abc", "images_seen": 8, "optimizer_counters": {"step": 3.0}, "optimizer_states": ["exp_avg"],
    }  # fmt: skip


def test_a_process_that_is_done_waits_for_the_others(tmp_path: Path) -> None:
    saver = a_saver(tmp_path)
    saver.begin({"images_seen": 8}, a_snapshot())
    assert saver._thread is not None
    saver._thread.join()
    saver.poll(anybody_writes=True)
    assert complete_checkpoints(RunDir(tmp_path)) == []
    saver.poll(anybody_writes=False)
    assert len(complete_checkpoints(RunDir(tmp_path))) == 1


def test_the_caller_is_asked_to_show_life_while_a_slow_disk_writes(
    gate: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "WAIT_SECONDS", 0.01)
    beats: list[None] = []

    def beat() -> None:
        beats.append(None)
        if len(beats) == 3:
            gate.set()

    saver = a_saver(tmp_path)
    saver.begin({"images_seen": 8}, a_snapshot())
    saver.finish(beat)
    assert len(beats) >= 3
    assert len(complete_checkpoints(RunDir(tmp_path))) == 1


def test_a_full_disk_is_raised_when_it_is_published_and_leaves_no_half(tmp_path: Path) -> None:
    saver, size = a_saver(tmp_path, 1_000_000), 1_000_000
    saver.begin({"images_seen": 8}, a_snapshot(size=size))
    saver.finish()
    with files_no_larger_than(100_000):
        saver.begin({"images_seen": 16}, a_snapshot(2.0, size))
        with pytest.raises(StorageError, match=r"cannot write the checkpoint .*images_000000000016: .*Free space"):
            saver.finish()
    assert [path.name for path in RunDir(tmp_path).checkpoints.iterdir()] == ["images_000000000008"]
    saver.begin({"images_seen": 16}, a_snapshot(2.0, size))
    saver.finish()
    assert [path.name for path in complete_checkpoints(RunDir(tmp_path))] == ["images_000000000016"]


def test_two_at_a_time_is_a_bug(gate: threading.Event, tmp_path: Path) -> None:
    saver = a_saver(tmp_path)
    saver.begin({"images_seen": 8}, a_snapshot())
    with pytest.raises(AssertionError, match="one checkpoint at a time"):
        saver.begin({"images_seen": 16}, a_snapshot())
    gate.set()
    saver.finish()
