"""Measures what the executor and the planner cost, without torch.

`measure_executor` runs tiny runs through the executor, and what the process of the sweep itself takes meanwhile;
`measure_processes` runs the same as `ecdit train` processes in the same slots, for comparison. `measure_plan` plans a
large sweep, and `measure_status` reads the state of its runs from their folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from experiments.benchmarks.study_folders import as_lines
from experiments.environment import child_environment
from experiments.errors import RunFailedError
from experiments.records.record_types import EvalRow, Status, StepRow
from sweeps.device_slots import Slot, choose_slots
from sweeps.folder import SweepFolder
from sweeps.plan import Plan, PlannedRun
from sweeps.planner import make_plan
from sweeps.progress import read_sweep
from sweeps.spec import parse_spec
from sweeps.workers import TRAIN

Row = dict[str, Any]

TINY = (
    "model.name=nano", "model.num_layers=2", "routing.num_experts=4", "train.images=16", "train.batch_images=8",
    "log.every_images=8", "eval.every_images=16", "eval.images=8", "eval.batch_images=8", "eval.sample_images=0",
    "checkpoint.every_images=16", "train.precision=fp32", "optim.warmup_images=8", "wandb.mode=disabled",
)  # fmt: skip
"""Settings of a run that ends as soon as it has begun, so that only the cost of starting it is left."""
NUM_TINY_RUNS = 24
NUM_PLANNED_RUNS = 10_000
MAX_SECONDS_RATIO, MAX_CORE_SHARE, MAX_MEBIBYTES = 0.5, 0.02, 300.0
"""The limits of a sweep: its time as a share of that of separate processes, its share of one core, and its memory."""
MAX_PLANNING_SECONDS, MAX_STATUS_SECONDS = 5.0, 2.0
"""The limits of planning 10,000 runs, and of reading their state."""
SWEEP_PROCESS = """
import json, resource, sys
from pathlib import Path
from experiments.benchmarks.executor_cost import run_tiny_sweep
said = run_tiny_sweep(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({**said, "mebibytes": mebibytes, "torch": "torch" in sys.modules}))
"""


def measure_sweep(
    folder: Path,
    overrides: Sequence[str] = (),
    num_runs: int = NUM_TINY_RUNS,
    num_planned: int = NUM_PLANNED_RUNS,
    on_part: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Measures everything in `folder`, which must be empty. `on_part` is called after each of the four parts."""
    swept = measure_executor(folder / "swept", overrides, num_runs)
    on_part()
    alone_seconds = measure_processes(folder / "alone", overrides, num_runs)
    on_part()
    name = f"{num_runs} tiny runs"
    rows = [
        _row(f"{name}: ecdit train, a process each", alone_seconds, "s"),
        _row(f"{name}: ecdit sweep", swept["seconds"], "s", MAX_SECONDS_RATIO * alone_seconds),
        _row(f"{name}: ratio", swept["seconds"] / alone_seconds, "", MAX_SECONDS_RATIO),
        _row("the sweep's own process: share of a core", swept["core_share"], "", MAX_CORE_SHARE),
        _row("the sweep's own process: memory at most", swept["mebibytes"], "MiB", MAX_MEBIBYTES),
    ]
    plan, seconds = measure_plan(num_planned)
    rows.append(_row(f"planning {num_planned:,} runs", seconds, "s", MAX_PLANNING_SECONDS))
    on_part()
    seconds = measure_status(folder / "status", plan)
    rows.append(_row(f"status of {num_planned:,} run folders", seconds, "s", MAX_STATUS_SECONDS))
    on_part()
    return rows


def measure_executor(out: Path, overrides: Sequence[str] = (), num_runs: int = NUM_TINY_RUNS) -> Row:
    """Returns the seconds of a sweep of tiny runs and what its process took; the start of the server is included."""
    command = [sys.executable, "-c", SWEEP_PROCESS, str(out), json.dumps(list(overrides)), str(num_runs)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=child_environment(), check=False)
    if answer.returncode != 0:
        raise RunFailedError("The sweep of tiny runs failed.", f"See {out}.")
    said: Row = json.loads(answer.stdout.splitlines()[-1])
    if said["num_done"] != num_runs or said["torch"]:
        raise RunFailedError(f"{said['num_done']} of {num_runs} tiny runs are done.", f"See {out}.")
    return {**said, "core_share": said["cpu_seconds"] / said["seconds"]}


def run_tiny_sweep(out: Path, overrides: Sequence[str], num_runs: int) -> Row:
    """Runs a sweep of tiny runs; it is called in a process of its own.

    Returns the wall seconds, the CPU seconds of this process meanwhile, and how many runs are done.
    """
    from sweeps.local import LocalExecutor
    from sweeps.runner import freeze_plan, run_sweep
    from sweeps.workers import PreloadedLauncher

    folder = SweepFolder(out)
    with folder.lock():
        plan = freeze_plan(folder, tiny_plan(num_runs, overrides))
    started, cpu_started = time.perf_counter(), time.process_time()
    executor = LocalExecutor(folder, choose_slots(num_runs), PreloadedLauncher(folder.server_log))
    result = run_sweep(folder, plan, executor, lambda snapshot: None)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "num_done": sum(run.state == "done" for run in result.runs),
    }


def measure_processes(out: Path, overrides: Sequence[str] = (), num_runs: int = NUM_TINY_RUNS) -> float:
    """Returns the seconds of the same runs, each started as `python -m ecdit_cli train`, in the same slots."""
    folder, plan = SweepFolder(out), tiny_plan(num_runs, overrides)
    slots: SimpleQueue[Slot] = SimpleQueue()
    choice = choose_slots(num_runs)
    for slot in choice:
        slots.put(slot)

    def train(run: PlannedRun) -> None:
        slot = slots.get()
        command = [*TRAIN, "--config", str(folder.write_config(run)), "--run-dir", str(folder.run_dir(run).path)]
        done = subprocess.run(
            command,
            env=child_environment(slot.environment()),
            preexec_fn=slot.pin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        slots.put(slot)
        if done.returncode != 0:
            raise RunFailedError(f"{' '.join(command)} ended with exit code {done.returncode}.")

    started = time.perf_counter()
    with ThreadPoolExecutor(len(choice)) as pool:
        list(pool.map(train, plan.runs))
    return time.perf_counter() - started


def tiny_plan(num_runs: int, overrides: Sequence[str] = ()) -> Plan:
    """Returns a plan of tiny runs that differ in the seed."""
    content = {"program": "ecdit", "method": "grid", "parameters": {"seed": {"values": list(range(num_runs))}}}
    return make_plan(parse_spec(content, default_name="bench"), [*TINY, *overrides])


def measure_plan(num_runs: int = NUM_PLANNED_RUNS) -> tuple[Plan, float]:
    """Returns the plan of a large sweep, and how many seconds making it took."""
    parameters = {
        "routing.name": {"values": ["dense", "expert_choice"]},
        "model.name": {"values": ["nano", "micro"]},
        "seed": {"values": list(range(num_runs // 4))},
    }
    spec = parse_spec({"program": "ecdit", "method": "grid", "parameters": parameters}, default_name="large")
    started = time.perf_counter()
    plan = make_plan(spec)
    return plan, time.perf_counter() - started


def measure_status(out: Path, plan: Plan, num_rows: int = 40) -> float:
    """Returns the seconds that reading the state of each run of `plan` takes, from folders with `num_rows` rows."""
    write_finished_runs(out, plan, num_rows)
    started = time.perf_counter()
    snapshot = read_sweep(out)
    seconds = time.perf_counter() - started
    assert snapshot.num_by_state["done"] == len(plan.runs)
    return seconds


def write_finished_runs(out: Path, plan: Plan, num_rows: int = 40) -> None:
    """Writes the folder of a sweep of which every run is done, with `num_rows` rows of each kind."""
    folder = SweepFolder(out)
    folder.write_plan(plan)
    steps, evaluations = _example_rows(num_rows)
    for run in plan.runs:
        run_dir = folder.run_dir(run)
        run_dir.path.mkdir(parents=True)
        status = Status(state="done", images_seen=run.images, images_total=run.images, heartbeat=time.time())
        run_dir.status_json.write_text(status.model_dump_json(exclude_none=True))
        run_dir.steps.write_bytes(steps)
        run_dir.evals.write_bytes(evaluations)


def _example_rows(num_rows: int) -> tuple[bytes, bytes]:
    steps = [
        StepRow(
            images_seen=images, flops=1e9 * images, seconds=images / 100, loss=0.5, learning_rate=1e-3, grad_norm=1.0,
            images_per_second=100.0,
        )
        for images in range(1, num_rows + 1)
    ]  # fmt: skip
    evaluations = [
        EvalRow(images_seen=images, metric=metric, value=0.5, num_samples=64, seed=0, weights="raw")
        for images in range(1, num_rows + 1)
        for metric in ("val_loss", *(f"val_loss_t{tenth}" for tenth in range(10)))
    ]
    return as_lines(steps), as_lines(evaluations)


def _row(measure: str, value: float, unit: str, limit: float | None = None) -> Row:
    row: Row = {"measure": measure, "value": value, "unit": unit}
    return row if limit is None else {**row, "limit": limit, "holds": value <= limit}
