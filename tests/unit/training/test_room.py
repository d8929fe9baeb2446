"""What is plainly too large is refused before it is built."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.records.run_folder import RunDir
from experiments.training.loop import train
from experiments.training.room import require_room


def test_the_97_billion_are_refused_in_one_line_before_anything_is_written(tmp_path: Path) -> None:
    config = load_config(["model=M", "routing.num_experts=64", "train.precision=fp32"])
    with pytest.raises(
        ConfigError, match=r"takes [\d,.]+ GiB, and .* has [\d,.]+\. Find a layout .* ecdit plan --search"
    ):
        train(config, RunDir(tmp_path / "run"), ["test"])
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a process then has an accelerator")
def test_one_process_is_told_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    config = load_config(["model=M", "routing.num_experts=64", "train.precision=fp32"])
    with pytest.raises(ConfigError, match=r"GiB, and this machine has [\d,.]+\. Find"):
        require_room(config, "fp32")


def test_a_small_one_has_room(tiny: Callable[..., RunConfig]) -> None:
    require_room(tiny(), "fp32")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="each process has an accelerator of its own")
def test_processes_of_one_machine_share_it(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., RunConfig]) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    with pytest.raises(ConfigError, match=re.escape("each of 100000 processes on this machine has")):
        require_room(tiny(), "fp32")
