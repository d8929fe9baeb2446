"""Running `ecdit train` as a user does: in a process of its own, since DeepSpeed's groups belong to the process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.records.layout import RunDir, read_jsonl

TINY = (
    "model=nano", "model.num_layers=2", "train.images=192", "train.batch_images=8", "log.every_images=16",
    "eval.every_images=48", "eval.images=16", "eval.batch_images=8", "eval.sample_images=0",
    "checkpoint.every_images=32",
    "train.precision=fp32", "optim.warmup_images=16", "wandb.mode=disabled", "routing.num_experts=4",
)  # fmt: skip
TIMEOUT_SECONDS = 180
CLOCK_COLUMNS = ("seconds", "images_per_second")


def train_command(folder: Path, *settings: str, options: Sequence[str] = ("--no-progress",)) -> list[str]:
    """`ecdit train` of a tiny model with `settings` on top."""
    return [sys.executable, "-m", "ecdit_cli", "train", *TINY, *settings, "--run-dir", str(folder), *options]


def environment() -> dict[str, str]:
    """One thread and no accelerator, so that the same sums are made in the same order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(), start_new_session=True)


def wait_for_rows(folder: Path, num_rows: int, process: subprocess.Popen[str]) -> None:
    """Until `steps.jsonl` has that many rows."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(read_jsonl(RunDir(folder).steps).rows) < num_rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no rows"
        time.sleep(0.02)


def numbers(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of a run but for what the clock says."""
    run = RunDir(folder)
    return {
        path.name: [{k: v for k, v in row.items() if k not in CLOCK_COLUMNS} for row in read_jsonl(path).rows]
        for path in (run.steps, run.evals, run.routing)
    }


def final_checkpoint(folder: Path) -> dict[str, bytes]:
    """The tensor files of the newest checkpoint."""
    newest = max(RunDir(folder).checkpoints.glob("images_*"))
    return {path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}
