"""Small sweeps, and a sweep with worker processes in miniature (`worker.py`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.config.overrides import known_settings, load_config
from experiments.config.schema import RunConfig
from experiments.config.stored import stored_value
from experiments.config.values import Accepts, Scalar
from experiments.errors import EcditError
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


PLAIN = ("model.num_layers=4", "train.images=6400")
COSTLY = (
    *PLAIN, "routing.capacity_warmup_images=12800", "routing.unconditional_expert=True", "train.repa_weight=0.5",
    "flow.objective=ddpm",
)  # fmt: skip
"""Settings with which the costs of a run depend on many others."""


@pytest.fixture(scope="session")
def neighbours() -> list[tuple[str, RunConfig]]:
    """Configs that differ in one setting from one of two others, each with the name of the setting."""
    return [each for words in (PLAIN, COSTLY) for each in _neighbours_of(words)]


def _neighbours_of(words: tuple[str, ...]) -> Iterator[tuple[str, RunConfig]]:
    settings = load_config(words).model_dump()
    for name, accepts in known_settings().items():
        for text in _other_texts(accepts, stored_value(settings, name)):
            try:
                yield name, load_config([*words, f"{name}={text}"])
            except EcditError:  # it does not fit the other settings
                continue


def _other_texts(accepts: Accepts, value: Scalar) -> list[str]:
    """A few texts for a setting that has `value`."""
    if bool in accepts.kinds:
        return [str(not value)]
    numbers: list[float] = []
    if accepts.kinds & {int, float}:
        numbers = [2 * value, value / 2] if isinstance(value, int | float) and value else [1, 0.5]
    words = [word for word in accepts.words if word != value]
    listed = ["all"] if accepts.listed else ["1.5,0.5"] if str in accepts.kinds else []
    return [*map(str, numbers), *map(str, words[:3]), *listed, *["None"] * accepts.none]
