"""Running `ecdit` as a user does: in a process of its own, since DeepSpeed's groups belong to the process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.config.routers import routed_names
from experiments.models.dit import DiT
from experiments.records.record_types import EvalRow, Status, StepRow
from experiments.records.run_folder import RunDir, read_jsonl
from experiments.records.writer import write_json_atomic, write_status
from experiments.routing.build import build_router
from experiments.routing.state import RouterState
from experiments.training.checkpoint_files import write_checkpoint
from experiments.training.description import describe_run
from experiments.training.router_states import KEY as ROUTER_STATE
from experiments.training.router_states import router_state
from tests.preloaded import MEASURING, ForkedRun, Server, server

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


def start_run(folder: Path, *settings: str, options: Sequence[str] = ("--no-progress",)) -> ForkedRun:
    """That command in a process of its own that was forked after the imports."""
    words = train_command(folder, *settings, options=options)[3:]
    return server_of(words).start(words, environment())


def server_of(words: Sequence[str]) -> Server:
    """Returns the server from which a training with these settings is forked."""
    return server(MEASURING) if any(word.startswith("eval.metric_images=") for word in words) else server()


def ecdit(words: Sequence[object], folder: Path | str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `ecdit WORDS` to its end in a process of its own that was forked after the imports, in `folder` if given."""
    forked = server().start([*map(str, words)], environment() | variables, folder=folder)
    stdout, stderr = forked.communicate(TIMEOUT_SECONDS)
    assert forked.returncode is not None
    return subprocess.CompletedProcess(["ecdit", *map(str, words)], forked.returncode, stdout, stderr)


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


def losses(folder: Path) -> list[float]:
    """Every loss of a run, for comparisons between layouts, whose sums differ in the last digits."""
    rows = numbers(folder)
    values = [row["loss"] for row in rows["steps.jsonl"]]
    return values + [row["value"] for row in rows["evals.jsonl"] if row["metric"].startswith("val_loss")]


def final_checkpoint(folder: Path) -> dict[str, bytes]:
    """The tensor files of the newest checkpoint."""
    newest = max(RunDir(folder).checkpoints.glob("images_*"))
    return {path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}


def stateful_routers() -> list[str]:
    """The routers that keep a state beside their weights."""
    return [name for name in routed_names() if build_router(load_config([f"routing={name}"])).state is not None]


def random_run_folder(folder: Path, *overrides: str, images_seen: int = 640) -> RunDir:
    """A run as if trained: two layers, a checkpoint in which every weight is random and no layer is the identity."""
    config = load_config(
        ["model=nano", "model.num_layers=2", "train.precision=fp32", "eval.sample_steps=2", *overrides]
    )
    record = describe_run(config, "fp32", budget(config), ["ecdit", "train"])
    run_dir = RunDir(folder)
    folder.mkdir(parents=True)
    write_json_atomic(run_dir.run_json, record.model_dump(mode="json", exclude_none=True))
    write_status(run_dir, Status(state="done", images_seen=images_seen, images_total=images_seen, heartbeat=0.0))
    flops = float(images_seen * record.train_flops_per_image)
    step = StepRow(
        images_seen=images_seen, flops=flops, seconds=1.0, loss=1.0, learning_rate=1e-3, grad_norm=1.0,
        images_per_second=float(images_seen),
    )  # fmt: skip
    run_dir.steps.write_text(step.model_dump_json(exclude_none=True) + "\n")
    loss = EvalRow(images_seen=images_seen, metric="val_loss", value=1.0, num_samples=8, seed=0, weights="raw")
    run_dir.evals.write_text(loss.model_dump_json(exclude_none=True) + "\n")
    torch.manual_seed(config.seed)
    model = DiT(config)
    raw = {name: tensor.detach() + 0.05 * torch.randn_like(tensor) for name, tensor in model.named_parameters()}
    ema = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in raw.items()}
    for module in model.modules():
        if isinstance(module, RouterState):
            module.update(torch.rand_like(next(module.buffers())))
    state = {"images_seen": images_seen, ROUTER_STATE: router_state(model)}
    write_checkpoint(run_dir, record.config_id, state, {"weights": raw, "ema": ema}, keep=1)
    return run_dir


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """What a full disk is to the one who writes: the same call fails in the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_file_system(parent: Path, mebibytes: int) -> Iterator[Path]:
    """A folder that is a file system of its own; the test is skipped where one cannot be mounted."""
    folder = parent / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
