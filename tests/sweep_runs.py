"""A sweep of tiny runs in a process of its own, as a user starts one, so that it can be killed.

    python -m tests.sweep_runs OUT [--settings KEY=VALUE,...] [--timeout SECONDS] [--clock-shift SECONDS]
        [--num-runs N]

The last line on stdout is JSON: the state of each run, and whether the sweep's process has imported torch.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from sweeps.device_slots import Slot
from sweeps.folder import SweepFolder
from sweeps.local import LocalExecutor
from sweeps.planner import make_plan
from sweeps.progress import SweepSnapshot
from sweeps.run_queue import Retries
from sweeps.runner import freeze_plan, run_sweep
from sweeps.sharing import SharedRuns
from sweeps.spec import parse_spec
from sweeps.workers import PreloadedLauncher

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 120.0
TINY_RUNS = (
    "model.name=nano", "model.num_layers=2", "train.images=96", "train.batch_images=8", "log.every_images=16",
    "eval.every_images=48", "eval.images=16", "eval.batch_images=8", "eval.sample_images=0",
    "checkpoint.every_images=32", "train.precision=fp32", "optim.warmup_images=16", "wandb.mode=disabled",
    "routing.num_experts=4",
)  # fmt: skip
SEEDS = (0, 1, 2)


def main() -> int:
    """Run the sweep; the exit code is that of `ecdit sweep`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default="")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--clock-shift", type=float, default=0.0)
    parser.add_argument("--num-runs", type=int, default=len(SEEDS))
    asked = parser.parse_args()
    if asked.clock_shift:
        right = time.time
        time.time = lambda: right() + asked.clock_shift
    overrides = [*TINY_RUNS, *filter(None, asked.settings.split(","))]
    folder = SweepFolder(asked.out)
    with folder.lock():
        plan = freeze_plan(folder, make_plan(spec(asked.num_runs), overrides))
    launcher = PreloadedLauncher(folder.server_log)
    executor = LocalExecutor(folder, [Slot(1), Slot(1)], launcher, asked.timeout, grace_seconds=1.0)
    result = run_sweep(folder, plan, executor, talk, Retries(2, backoff_seconds=0.5), shared=SharedRuns(folder))
    states = {run.name: [run.state, run.reason] for run in result.runs}
    print(json.dumps({"states": states, "torch": "torch" in sys.modules}), flush=True)
    return result.exit_code


def spec(num_runs: int) -> Any:
    """Runs that differ in the seed."""
    content = {"program": "ecdit", "method": "grid", "parameters": {"seed": {"values": list(SEEDS[:num_runs])}}}
    return parse_spec(content, default_name="faults")


def talk(snapshot: SweepSnapshot) -> None:
    """What happened, for the reader of a failed test."""
    for event in snapshot.events:
        print(f"{event.name}: {event.text}", flush=True)


def start_sweep(
    out: Path, *options: str, environment: dict[str, str] | None = None, host: str | None = None
) -> subprocess.Popen[str]:
    """The sweep as a process that leads a process group; with `host`, on what looks like another machine."""
    pipe = subprocess.PIPE
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    return subprocess.Popen(
        [*(on_host(host) if host else []), sys.executable, "-m", "tests.sweep_runs", str(out), *options],
        cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=variables, start_new_session=True,
    )  # fmt: skip


def on_host(name: str) -> list[str]:
    """What to put before a command for it to see another host name and no process but its own. Needs root."""
    new = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*new, "sh", "-c", f'hostname {name} && exec "$@"', "sh"]


def finish(process: subprocess.Popen[str], exit_code: int = 0) -> dict[str, Any]:
    """What the sweep says at its end."""
    stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == exit_code, (stdout, stderr)
    said: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return {**said, "talk": stdout}


def run_folders(out: Path) -> list[Path]:
    """The folders of the runs that were started."""
    return sorted((out / "runs").glob("*"))


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What `condition` returns once it is true; the sweep must still be there."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    """The server and the runs of a sweep."""
    return psutil.Process(pid).children(recursive=True)


@contextmanager
def ended(*processes: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever the test finds, nothing of it goes on."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                for child in descendants(process.pid):
                    child.send_signal(signal.SIGKILL)
                process.kill()
                process.communicate()


if __name__ == "__main__":
    sys.exit(main())
