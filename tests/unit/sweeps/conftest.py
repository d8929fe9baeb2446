"""Small sweeps, and a sweep with worker processes in miniature (`worker.py`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.device_slots import Slot
from sweeps.folder import SweepFolder
from sweeps.local import LocalExecutor
from sweeps.plan import Plan
from sweeps.planner import make_plan
from sweeps.progress import SweepSnapshot, read_progress
from sweeps.run_queue import Retries, RunQueue
from sweeps.runner import SweepResult, freeze_plan, run_sweep
from sweeps.sharing import SharedRuns
from sweeps.spec import SweepSpec, parse_spec
from sweeps.workers import CommandLauncher


@pytest.fixture
def grid() -> Callable[..., SweepSpec]:
    """A sweep called `small`; a list is swept, anything else is fixed, `__` stands for the dot."""

    def spec(**parameters: object) -> SweepSpec:
        forms = {
            name.replace("__", "."): {"values": given} if isinstance(given, list) else {"value": given}
            for name, given in parameters.items()
        }
        return parse_spec({"program": "ecdit", "method": "grid", "parameters": forms}, default_name="small")

    return spec


@pytest.fixture
def seeds(grid: Callable[..., SweepSpec]) -> Callable[..., Plan]:
    """A plan of cheap runs that differ in the seed."""
    return lambda *numbers: make_plan(grid(seed=list(numbers), train__images=64, routing__name="dense"))


@pytest.fixture
def worker() -> list[str]:
    """The command of a run in miniature; seeds and their behaviours (`1=crash`) go behind it."""
    return [sys.executable, str(Path(__file__).with_name("worker.py"))]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "out")


@pytest.fixture
def run(folder: SweepFolder, worker: list[str]) -> Callable[..., SweepResult]:
    """Runs a plan with workers that behave as told, e.g. `run(plan, "1=crash")`."""

    def run_plan(
        asked: Plan,
        *behaviours: str,
        num_slots: int = 2,
        on_progress: Callable[[SweepSnapshot], None] = lambda snapshot: None,
        retries: int = 0,
        timeout_seconds: float = 60.0,
        shared: SharedRuns | None = None,
        retry_failed: bool = True,
    ) -> SweepResult:
        with folder.lock():
            plan = freeze_plan(folder, asked)
        launcher = CommandLauncher([*worker, *behaviours])
        executor = LocalExecutor(folder, [Slot(1)] * num_slots, launcher, timeout_seconds, grace_seconds=0.5)
        again = Retries(retries, backoff_seconds=0.1)
        return run_sweep(folder, plan, executor, on_progress, again, retry_failed, shared)

    return run_plan


@pytest.fixture
def queue(folder: SweepFolder) -> Callable[..., RunQueue]:
    """The queue of one sweep of the folder: `queue(plan)`; two of them share the runs of the folder."""

    def make(plan: Plan, shared: SharedRuns | None = None, retry_failed: bool = True) -> RunQueue:
        progress = {run.name: read_progress(folder.run_dir(run), run.images) for run in plan.runs}
        return RunQueue(folder, plan.runs, progress, shared or SharedRuns(folder), Retries(1, 0.0), retry_failed)

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, to be moved by hand."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now
